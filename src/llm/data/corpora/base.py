"""The interface of all corpora: lazily read documents and a fingerprint."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class DocumentPiece(NamedTuple):
    """A piece of a document.

    Attributes:
        text: the text of the piece.
        ends: whether it is the last piece of its document.
    """

    text: str
    ends: bool


class Source(ABC):
    """A corpus, which need not fit in memory.

    A source that yields pieces need not keep a whole document in memory. Documents are read several times (to measure,
    to train a tokenizer, to tokenize) and must be the same each time, in the same order.

    Attributes:
        name: the name in messages.
        invalid_bytes: number of undecodable bytes replaced so far.
    """

    name: str
    invalid_bytes: int = 0

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """Yield the documents, one string each."""

    def pieces(self) -> Iterator[DocumentPiece]:
        """Yield the documents that are not empty, each in one or several pieces."""
        return (DocumentPiece(document, ends=True) for document in self.documents() if document)

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a string that changes when the documents change, without reading them all."""


def join_pieces(pieces: Iterable[DocumentPiece]) -> Iterator[str]:
    """Yield the documents that the pieces form."""
    document: list[str] = []
    for text, ends in pieces:
        document.append(text)
        if ends:
            yield "".join(document)
            document = []
