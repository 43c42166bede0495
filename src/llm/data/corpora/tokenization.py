"""Tokenization of documents into a token file; the corpus need not fit in memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm.data.corpora.base import DocumentPiece
from llm.data.corpora.token_file import token_dtype
from llm.tokenizers.base import Tokenizer
from llm.tokenizers.pieces import cut_between_words

PIECE = 1 << 15  # characters passed to a thread at a time
BATCH = 1 << 22  # characters in a batch


@dataclass(frozen=True)
class TokenFileStats:
    """The statistics of a written token file.

    Attributes:
        documents: number of documents.
        characters: number of characters.
        bytes: number of UTF-8 bytes.
        tokens: number of tokens, separators included.
    """

    documents: int
    characters: int
    bytes: int
    tokens: int


def tokenize(
    documents: Iterable[DocumentPiece],
    tokenizer: Tokenizer,
    *,
    path: Path,
    separator: int | None = None,
    advance: Callable[[int], None] = lambda characters: None,
) -> TokenFileStats:
    """Write the tokens of all documents to a file, each document followed by the separator.

    Args:
        documents: the documents in pieces of any length, read once.
        tokenizer: the tokenizer, whose `encode_batch` may use several threads.
        path: path of the token file.
        separator: the end-of-text token, or None for no separator.
        advance: called after each batch with its number of characters.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    end = np.array([] if separator is None else [separator], dtype=dtype)
    count, characters, size, tokens = 0, 0, 0, 0
    with path.open("wb") as file:
        for batch in batch_documents(documents):
            texts = [text for text, _ in batch]
            for ids, (text, ends) in zip(tokenizer.encode_batch(texts), batch, strict=True):
                row = np.asarray(ids, dtype=dtype)
                row.tofile(file)
                tokens += len(row)
                size += len(text.encode("utf-8", "surrogatepass"))
                if ends:
                    end.tofile(file)
                    tokens += len(end)
                    count += 1
            done = sum(map(len, texts))
            characters += done
            advance(done)
    return TokenFileStats(documents=count, characters=characters, bytes=size, tokens=tokens)


def batch_documents(documents: Iterable[DocumentPiece]) -> Iterator[list[DocumentPiece]]:
    """Yield pieces of documents in batches of about BATCH characters."""
    batch, size = [], 0
    for piece in cut_documents(documents):
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def cut_documents(documents: Iterable[DocumentPiece]) -> Iterator[DocumentPiece]:
    """Yield documents cut between words, independent of where the given pieces end."""
    held, searched = "", 0
    for text, ends in documents:
        # A cut is recognized by the two characters after it, so the last two must be searched again.
        *whole, held = cut_between_words(held + text, PIECE, searched=searched)
        yield from (DocumentPiece(each, ends=False) for each in whole)
        searched = max(0, len(held) - 2)
        if ends:
            yield DocumentPiece(held, ends=True)
            held, searched = "", 0
