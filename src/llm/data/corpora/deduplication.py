"""Removal of repeated text, found by its runs of eight words."""

from collections.abc import Iterable, Iterator

DATA_VERSION = 1  # increase it when the output of this module changes, so that caches are rebuilt

GRAM = 8


def grams(text: str) -> set[tuple[str, ...]]:
    """Return all runs of eight words of a text, or all its words if it is shorter."""
    words = text.lower().split()
    return {tuple(words[i : i + GRAM]) for i in range(max(1, len(words) - GRAM + 1))}


def drop_repeated(
    texts: Iterable[str], seen: set[tuple[str, ...]], *, most: float
) -> Iterator[str]:
    """Yield the texts of which at most a share `most` is in earlier texts, and add them to `seen`."""
    for text in texts:
        found = grams(text)
        if len(found & seen) <= most * len(found):
            seen |= found
            yield text
