"""Splits of text into a training part and a held-out part."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm.data.corpora.base import DocumentPiece, Source
from llm.data.errors import DataError

Documents = Callable[[], Iterator[DocumentPiece]]
FEW = 20  # minimum effective number of documents for a random split


@dataclass(frozen=True)
class Split:
    """The two parts of a corpus, each a function that returns a new iterator.

    Attributes:
        train: the training documents.
        validation: the held-out documents.
        characters: number of characters in both parts together.
        separated: whether there are several documents, with a separator token between them.
        held_out: description of the validation part.
        is_drawn: whether the held-out documents are drawn at random.
    """

    train: Documents
    validation: Documents
    characters: int
    separated: bool
    held_out: str = ""
    is_drawn: bool = False


def split_corpus(source: Source, validation_fraction: float, *, seed: int) -> Split:
    """Hold out random documents if there are many, otherwise the end of each document.

    For one document this is the split of nanoGPT. Among few documents, the loss of a random one would measure how it
    differs from the others.

    Raises:
        DataError: the source has no text or too little.
    """
    lengths = _lengths(source)
    is_drawn = effective_number(lengths) >= FEW
    if is_drawn:
        drawn = choose_held_out(lengths, validation_fraction, seed=seed)
        cuts = np.where(drawn, 0, lengths)
        held_out = f"{drawn.sum():,} of {len(lengths):,} documents, drawn by split_seed={seed}"
    else:
        cuts = (lengths * (1 - validation_fraction)).astype(np.int64)
        of_what = "the text" if len(lengths) == 1 else f"each of {len(lengths):,} documents"
        held_out = f"the last {100 * validation_fraction:.3g} % of {of_what}"
    if not 0 < cuts.sum() < lengths.sum():
        raise DataError(
            f"{source.name}: {lengths.sum()} characters cannot be split by "
            f"validation_fraction={validation_fraction}; give more text"
        )
    return Split(
        train=lambda: _beginnings(source, cuts),
        validation=lambda: _ends(source, cuts, lengths),
        characters=int(lengths.sum()),
        separated=len(lengths) > 1,
        held_out=held_out,
        is_drawn=is_drawn,
    )


def effective_number(lengths: np.ndarray) -> float:
    """Return the effective number of documents, the inverse Simpson index.

    It is the number of documents if all are equally long, and about 2 for two long documents among many short ones.
    """
    return float(lengths.sum() ** 2 / (lengths.astype(np.float64) ** 2).sum())


def published_split(train: Source, validation: Source) -> Split:
    """Return the published split of a corpus, so that metrics are comparable with published ones."""
    lengths = [_lengths(train), _lengths(validation)]
    return Split(
        train=train.pieces,
        validation=validation.pieces,
        characters=int(sum(each.sum() for each in lengths)),
        separated=max(len(each) for each in lengths) > 1,
        held_out=validation.name,
    )


def _numbered(source: Source) -> Iterator[tuple[int, int, DocumentPiece]]:
    """Yield the pieces of a source with the index of their document and their offset in it, in characters."""
    document = offset = 0
    for piece in source.pieces():
        yield document, offset, piece
        document, offset = (document + 1, 0) if piece.ends else (document, offset + len(piece.text))


def _beginnings(source: Source, cuts: np.ndarray) -> Iterator[DocumentPiece]:
    """Yield each document up to its cut."""
    for document, offset, (text, ends) in _numbered(source):
        if offset < cuts[document]:
            left = int(cuts[document]) - offset
            yield DocumentPiece(text[:left], ends=ends or len(text) >= left)


def _ends(source: Source, cuts: np.ndarray, lengths: np.ndarray) -> Iterator[DocumentPiece]:
    """Yield the rest of each document after its cut, if there is one."""
    is_cut = cuts < lengths
    for document, offset, (text, ends) in _numbered(source):
        if is_cut[document] and (ends or offset + len(text) > cuts[document]):
            yield DocumentPiece(text[max(0, int(cuts[document]) - offset) :], ends=ends)


def choose_held_out(lengths: np.ndarray, fraction: float, *, seed: int) -> np.ndarray:
    """Draw documents to hold out, up to a fraction of all characters; at least the shortest.

    Args:
        lengths: characters of each document, (N).
        fraction: share of all characters to hold out.
        seed: seed of the draw.

    Returns:
        (N) bool, true for held-out documents.
    """
    target = fraction * lengths.sum()
    order = np.random.default_rng(seed).permutation(len(lengths))
    order = order[lengths[order] <= target]
    chosen = order[np.cumsum(lengths[order]) <= target]
    held_out = np.zeros(len(lengths), dtype=bool)
    held_out[chosen if len(chosen) else lengths.argmin()] = True
    return held_out


def _lengths(source: Source) -> np.ndarray:
    """Return the length of each document in characters."""
    ends = (offset + len(text) for _, offset, (text, ends) in _numbered(source) if ends)
    lengths = np.fromiter(ends, dtype=np.int64)
    if not len(lengths):
        raise DataError(f"{source.name}: has no text; give a source with text")
    return lengths


def indices_by_group(groups: Sequence[Any]) -> dict[Any, list[int]]:
    """Return the indices of the examples of each group."""
    indices: dict[Any, list[int]] = {}
    for index, group in enumerate(groups):
        indices.setdefault(group, []).append(index)
    return indices


def split_examples(
    groups: Sequence[Any], fractions: Mapping[str, float], *, seed: int
) -> dict[str, list[int]]:
    """Split examples into parts at random, with the same proportions in each group (stratified).

    Args:
        groups: group of each example, such as its label.
        fractions: share of each part; the caller checks that they sum to 1. Sizes are rounded; the first part gets
            the rest.
        seed: seed of the draw.

    Returns:
        the indices of each part's examples, in order.
    """
    random = np.random.default_rng(seed)
    parts: dict[str, list[int]] = {name: [] for name in fractions}
    first, *others = fractions
    for members in indices_by_group(groups).values():
        shuffled = random.permutation(members).tolist()
        for name in others:
            number = round(fractions[name] * len(members))
            parts[name] += shuffled[:number]
            shuffled = shuffled[number:]
        parts[first] += shuffled
    return {name: sorted(indices) for name, indices in parts.items()}
