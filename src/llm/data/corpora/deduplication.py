"""Text that stands twice: found by its runs of eight words and kept once."""

from collections.abc import Iterable, Iterator

DATA_VERSION = 1  # raised when the tokens or the text that come out of here change

GRAM = 8


def grams(text: str) -> set[tuple[str, ...]]:
    """All runs of eight words (the whole text, where it is shorter)."""
    words = text.lower().split()
    return {tuple(words[i : i + GRAM]) for i in range(max(1, len(words) - GRAM + 1))}


def share_found(part: Iterable[str], whole: Iterable[str]) -> float:
    """What share of the runs of eight words in one part of a corpus stand in the other as well."""
    known = set().union(*map(grams, whole))
    words = set().union(*map(grams, part))
    return len(words & known) / max(1, len(words))


def distinct(texts: Iterable[str], seen: set[tuple[str, ...]], *, most: float) -> Iterator[str]:
    """Drop texts of which more than a share `most` stands in those before; adds to `seen`."""
    for text in texts:
        found = grams(text)
        if len(found & seen) <= most * len(found):
            seen |= found
            yield text
