"""From documents to a token file, in batches: the corpus is never in memory as a whole."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm.data.token_file import token_dtype
from llm.tokenizers.tokenizer import Tokenizer

PIECE = 1 << 15  # characters handed to one thread at a time
BATCH = 1 << 22  # characters in flight
# Byte-pair tokenizers first cut a text into words, and all of them cut before a single space and
# after a line's only newline: cutting there changes no token.
BETWEEN_WORDS = re.compile(r"(?<=\S)(?= \S)|(?<=\S\n)(?=\S)")


@dataclass(frozen=True)
class Part:
    """What is known of a written token file.

    Attributes:
        documents: How many documents were written.
        characters: Their length in characters.
        bytes: Their length in UTF-8.
        tokens: Their length in tokens, separators included.
    """

    documents: int
    characters: int
    bytes: int
    tokens: int


def tokenize(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    path: Path,
    separator: int | None = None,
    advance: Callable[[int], None] = lambda characters: None,
) -> Part:
    """Write the tokens of all documents to a file, each document followed by the separator.

    Args:
        documents: Read once.
        tokenizer: Its encode_batch decides how many threads work.
        path: Where to write.
        separator: The end-of-text token, or None to join documents as they are.
        advance: Told of the characters done after each batch.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    end = np.array([] if separator is None else [separator], dtype=dtype)
    count, characters, size, tokens = 0, 0, 0, 0
    with path.open("wb") as file:
        for batch in batches(documents):
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
    return Part(documents=count, characters=characters, bytes=size, tokens=tokens)


def batches(documents: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """Group pieces of documents into batches of some BATCH characters."""
    batch, size = [], 0
    for document in documents:
        for piece in pieces(document):
            batch.append(piece)
            size += len(piece[0])
            if size >= BATCH:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def pieces(document: str) -> Iterator[tuple[str, bool]]:
    """Cut a long document between words, each piece with whether it is the last one."""
    start = 0
    while len(document) - start > PIECE:
        cut = BETWEEN_WORDS.search(document, start + PIECE)
        if cut is None:
            break
        yield document[start : cut.start()], False
        start = cut.start()
    yield document[start:], True
