"""Which text is trained on and which is held out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm.data.corpora.base import DocumentPiece, Source
from llm.data.errors import DataError

Documents = Callable[[], Iterator[DocumentPiece]]
FEW = 20  # documents of equal length that a draw is made from at least


@dataclass(frozen=True)
class Split:
    """The two parts of a corpus, each a function that starts reading it anew.

    Attributes:
        train: Documents to learn from.
        validation: Documents held out.
        characters: Number of characters in both parts together.
        separated: Whether there are several documents, with something to set between them.
        held_out: What the validation part is, in words.
        is_drawn: Whether a seed draws the documents held out.
    """

    train: Documents
    validation: Documents
    characters: int
    separated: bool
    held_out: str = ""
    is_drawn: bool = False


def split_corpus(source: Source, validation_fraction: float, *, seed: int) -> Split:
    """Draw documents to hold out where there are many; hold out the end of each where there are few.

    The end of the only document is the split of nanoGPT and of the book. Few documents are divided in the same
    way: one drawn from six may be of a kind that the others are not, and its loss then tells of the kind.

    Raises:
        DataError: The source has no text, or too little to split.
    """
    lengths = _lengths(source)
    if effective_number(lengths) < FEW:
        return _split_by_position(source, lengths, validation_fraction=validation_fraction)
    held_out = choose_held_out(lengths, validation_fraction, seed=seed)
    return Split(
        train=lambda: _chosen(source, ~held_out),
        validation=lambda: _chosen(source, held_out),
        characters=int(lengths.sum()),
        separated=True,
        held_out=f"{held_out.sum():,} of {len(lengths):,} documents, drawn by split_seed={seed}",
        is_drawn=True,
    )


def _split_by_position(source: Source, lengths: np.ndarray, *, validation_fraction: float) -> Split:
    cuts = (lengths * (1 - validation_fraction)).astype(np.int64)
    if not 0 < cuts.sum() < lengths.sum():
        raise DataError(
            f"{source.name}: {lengths.sum()} characters cannot be split by "
            f"validation_fraction={validation_fraction}: give more text"
        )
    of_what = "the text" if len(lengths) == 1 else f"each of {len(lengths):,} documents"
    return Split(
        train=lambda: _beginnings(source, cuts),
        validation=lambda: _ends(source, cuts),
        characters=int(lengths.sum()),
        separated=len(lengths) > 1,
        held_out=f"the last {100 * validation_fraction:.3g} % of {of_what}",
    )


def effective_number(lengths: np.ndarray) -> float:
    """The number of documents of equal length that are as unlike in what a draw of them holds out.

    It is the inverse Simpson index: the number of documents where all are equally long, and near 2 for two long
    ones among any number of short ones.
    """
    return float(lengths.sum() ** 2 / (lengths.astype(np.float64) ** 2).sum())


def published_split(train: Source, validation: Source) -> Split:
    """Keep the split that a corpus was published with, so that figures compare with others'."""
    lengths = [_lengths(train), _lengths(validation)]
    return Split(
        train=train.pieces,
        validation=validation.pieces,
        characters=int(sum(each.sum() for each in lengths)),
        separated=max(len(each) for each in lengths) > 1,
        held_out=validation.name,
    )


def _numbered(source: Source) -> Iterator[tuple[int, int, DocumentPiece]]:
    """The pieces of a source, each with its document's number and its place in that."""
    document = place = 0
    for piece in source.pieces():
        yield document, place, piece
        document, place = (document + 1, 0) if piece.ends else (document, place + len(piece.text))


def _chosen(source: Source, chosen: np.ndarray) -> Iterator[DocumentPiece]:
    return (piece for document, _, piece in _numbered(source) if chosen[document])


def _beginnings(source: Source, cuts: np.ndarray) -> Iterator[DocumentPiece]:
    """Each document up to its cut."""
    for document, place, (text, ends) in _numbered(source):
        if place < cuts[document]:
            left = int(cuts[document]) - place
            yield DocumentPiece(text[:left], ends=ends or len(text) >= left)


def _ends(source: Source, cuts: np.ndarray) -> Iterator[DocumentPiece]:
    """Each document from its cut on."""
    for document, place, (text, ends) in _numbered(source):
        if ends or place + len(text) > cuts[document]:
            yield DocumentPiece(text[max(0, int(cuts[document]) - place) :], ends=ends)


def choose_held_out(lengths: np.ndarray, fraction: float, *, seed: int) -> np.ndarray:
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


def _lengths(source: Source) -> np.ndarray:
    """Characters of each document: eight bytes each is all of a corpus that stays in memory."""
    lengths = np.fromiter(_each_length(source), dtype=np.int64)
    if not len(lengths):
        raise DataError(f"{source.name}: has no text; give one that has")
    return lengths


def _each_length(source: Source) -> Iterator[int]:
    length = 0
    for text, ends in source.pieces():
        length += len(text)
        if ends:
            yield length
            length = 0


def split_examples(
    groups: Sequence[Any], fractions: Mapping[str, float], *, seed: int
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
