"""Which text is trained on and which is held out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np

from llm.data.errors import DataError
from llm.data.source import Source

Documents = Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Split:
    """The two parts of a corpus, each a function that starts reading it anew.

    Attributes:
        train: Documents to learn from.
        validation: Documents held out.
        characters: How many characters both parts have together.
        separated: Whether there are several documents, with something to set between them.
    """

    train: Documents
    validation: Documents
    characters: int
    separated: bool


def split(source: Source, validation_fraction: float, seed: int) -> Split:
    """Split by document where there are several, by position where there is one.

    By position is the split of nanoGPT and of the book: the last part of the text is held out.

    Raises:
        DataError: The source has no text, or too little to split.
    """
    lengths = _lengths(source)
    if len(lengths) == 1:
        cut = int(lengths[0] * (1 - validation_fraction))
        if not 0 < cut < lengths[0]:
            raise DataError(
                f"{source.name}: {lengths[0]} characters cannot be split by "
                f"validation_fraction={validation_fraction}: give more text"
            )
        return Split(
            train=lambda: (document[:cut] for document in documents_of(source)),
            validation=lambda: (document[cut:] for document in documents_of(source)),
            characters=int(lengths.sum()),
            separated=False,
        )
    held_out = choose(lengths, validation_fraction, seed)
    return Split(
        train=lambda: compress(documents_of(source), ~held_out),
        validation=lambda: compress(documents_of(source), held_out),
        characters=int(lengths.sum()),
        separated=True,
    )


def published_split(train: Source, validation: Source) -> Split:
    """Keep the split that a corpus was published with, so that figures compare with others'."""
    lengths = [_lengths(train), _lengths(validation)]
    return Split(
        train=lambda: documents_of(train),
        validation=lambda: documents_of(validation),
        characters=int(sum(each.sum() for each in lengths)),
        separated=max(len(each) for each in lengths) > 1,
    )


def choose(lengths: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draw documents to hold out, close to but not above a fraction of all characters.

    Where every single document is larger than that, the smallest is held out.

    Args:
        lengths: Characters of each document, (N).
        fraction: How much of all characters to hold out.
        seed: Decides the draw.

    Returns:
        (N) booleans, at least one of them true.
    """
    target = fraction * lengths.sum()
    order = np.random.default_rng(seed).permutation(len(lengths))
    order = order[lengths[order] <= target]
    chosen = order[np.cumsum(lengths[order]) <= target]
    held_out = np.zeros(len(lengths), dtype=bool)
    held_out[chosen if len(chosen) else lengths.argmin()] = True
    return held_out


def documents_of(source: Source) -> Iterator[str]:
    """The documents that have text: an empty one can stand for neither part."""
    return filter(None, source.documents())


def _lengths(source: Source) -> np.ndarray:
    """Characters of each document: eight bytes each is all of a corpus that stays in memory."""
    lengths = np.fromiter((len(document) for document in documents_of(source)), dtype=np.int64)
    if not len(lengths):
        raise DataError(f"{source.name}: has no text")
    return lengths


def split_examples(
    groups: Sequence[Any], fractions: Mapping[str, float], seed: int
) -> dict[str, list[int]]:
    """Deal examples out to parts at random, each group in the same proportions (stratified).

    Args:
        groups: What each example belongs to, such as its label; all alike for a plain split.
        fractions: The share of each part; they sum to 1. Each part but the first is rounded to the
            nearest number, so nothing is lost.
        seed: Decides the draw.

    Returns:
        The places of each part's examples, in their order.

    Raises:
        ValueError: The fractions are no shares of one whole.
    """
    if abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) < 0:
        raise ValueError(f"the parts' fractions {dict(fractions)} do not sum to 1")
    random = np.random.default_rng(seed)
    parts: dict[str, list[int]] = {name: [] for name in fractions}
    first, *others = fractions
    members_of: dict[Any, list[int]] = {}
    for at, group in enumerate(groups):
        members_of.setdefault(group, []).append(at)
    for members in members_of.values():
        dealt = random.permutation(members).tolist()
        for name in others:
            number = round(fractions[name] * len(members))
            parts[name] += dealt[:number]
            dealt = dealt[number:]
        parts[first] += dealt
    return {name: sorted(places) for name, places in parts.items()}
