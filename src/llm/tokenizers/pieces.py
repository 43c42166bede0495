"""Long texts cut where no tokenizer joins anything, so that none has to be handled as a whole."""

import re
from collections.abc import Iterator

# Byte-pair tokenizers first cut a text into words, and all of them cut before a single space and
# after a line's only newline: cutting there changes no token.
BETWEEN_WORDS = re.compile(r"(?<=\S)(?= \S)|(?<=\S\n)(?=\S)")


def cut_between_words(text: str, size: int, *, searched: int = 0) -> Iterator[str]:
    """Yield a text in pieces of `size` characters and as few more as end a word.

    Args:
        text: The text; where it has no place to cut, the rest of it is one piece.
        size: The least length of every piece but the last.
        searched: Characters known to have no place to cut after the first `size` of them.
    """
    start = 0
    while len(text) - start > size:
        cut = BETWEEN_WORDS.search(text, max(start + size, searched))
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]
