"""What every corpus is to the rest of the code: documents, read lazily, and a fingerprint."""

from abc import ABC, abstractmethod
from collections.abc import Iterator


class Source(ABC):
    """A corpus.

    A document has to fit in memory; a corpus need not. `documents()` may be called several times
    (to measure, to fit a tokenizer, to tokenize) and yields the same documents in the same order.

    Attributes:
        name: What a summary line calls it.
        invalid_bytes: How many undecodable bytes were replaced while reading, so far.
    """

    name: str
    invalid_bytes: int = 0

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """Yield the documents, one string each."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A string that changes when the documents change, told without reading them all."""
