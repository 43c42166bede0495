"""Cutting a long text without changing its tokens."""

import re
from collections.abc import Iterator

# Byte-pair tokenizers first cut a text into words. All of them cut before a single space and after a single
# newline, so a cut there changes no token.
BETWEEN_WORDS = re.compile(r"(?<=\S)(?= \S)|(?<=\S\n)(?=\S)")


def cut_between_words(text: str, size: int, *, searched: int = 0) -> Iterator[str]:
    """Yield a text in pieces of `size` characters and a few more, up to the end of a word.

    Args:
        text: any text; without a position to cut, its rest is one piece.
        size: minimum length of every piece but the last, in characters.
        searched: number of characters known to have no cut after the first `size`.
    """
    start = 0
    while len(text) - start > size:
        cut = BETWEEN_WORDS.search(text, max(start + size, searched))
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]
