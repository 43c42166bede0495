"""What every corpus is to the rest of the code: documents, read lazily, and a fingerprint."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class DocumentPiece(NamedTuple):
    """A stretch of a document.

    Attributes:
        text: Its characters.
        ends: Whether the document ends with it.
    """

    text: str
    ends: bool


class Source(ABC):
    """A corpus.

    A corpus need not fit in memory, and neither need a document where a source reads it in pieces. Documents may
    be read several times (to measure, to fit a tokenizer, to tokenize): they are the same, in the same order.

    Attributes:
        name: What a summary line calls it.
        invalid_bytes: How many undecodable bytes were replaced while reading, so far.
    """

    name: str
    invalid_bytes: int = 0

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """Yield the documents, one string each."""

    def pieces(self) -> Iterator[DocumentPiece]:
        """Yield the documents that have text, each in one piece or in several."""
        return (DocumentPiece(document, ends=True) for document in self.documents() if document)

    @abstractmethod
    def fingerprint(self) -> str:
        """A string that changes when the documents change, told without reading them all."""


def join_pieces(pieces: Iterable[DocumentPiece]) -> Iterator[str]:
    """Yield the documents that pieces make."""
    document: list[str] = []
    for text, ends in pieces:
        document.append(text)
        if ends:
            yield "".join(document)
            document = []
