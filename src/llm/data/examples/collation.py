"""Collation of examples of different lengths: padding, length grouping and packing.

An example is a dictionary of lists with one value per token, such as `tokens` and `targets`. Rows are padded on the
right, so a causal model needs no padding mask: no token attends to the padding after it, and its targets are ignored.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch

from llm.data.base import at_least
from llm.data.corpora.windows import Batch
from llm.data.sampler import LengthGroupedSampler, TrainingSampler
from llm.nn.ignore_index import IGNORE_INDEX

Encoded = dict[str, list[int]]
# Padding values; document ids of real tokens are 0 or more.
FILL = {"tokens": 0, "targets": IGNORE_INDEX, "positions": 0, "document_ids": -1}


def pad(rows: Sequence[Encoded], length: int) -> Batch:
    """Return rows as tensors of (B, T) int64 by name, padded on the right.

    Args:
        rows: B dictionaries with the same keys, all in `FILL`.
        length: T, at least the length of the longest row.
    """
    return {
        name: torch.tensor(
            [row[name] + [FILL[name]] * (length - len(row[name])) for row in rows],
            dtype=torch.int64,
        )
        for name in rows[0]
    }


def pad_with_mask(rows: Sequence[Encoded], width: int | None = None) -> Batch:
    """Return padded rows, as `pad`, with `attention_mask` (B, T) bool: true for tokens that are not padding.

    Args:
        rows: B rows, whose lists have one value per token.
        width: T; by default the length of the longest row.
    """
    lengths = torch.tensor([len(row["tokens"]) for row in rows])
    width = int(lengths.max()) if width is None else width
    return pad(rows, width) | {"attention_mask": torch.arange(width) < lengths[:, None]}


class Padding:
    """A collation with one example per row, padded to the longest row of its batch.

    Args:
        multiple: rows are padded to a multiple of this number of tokens, up to the context length. Tensor cores are
            faster with such lengths, and fewer different lengths need fewer kernels.

    Raises:
        ValueError: the multiple is less than 1.
    """

    def __init__(self, multiple: int = 8) -> None:
        self.multiple = at_least(
            "multiple", multiple, least=1, remedy="8, or 1 for the longest row"
        )

    def arrange(self, examples: Sequence[Encoded], context_length: int) -> list[Encoded]:
        """Return examples as rows that are not longer than the context."""
        return list(examples)

    def sampler(self, lengths: Sequence[int], batch_size: int, **order: int) -> TrainingSampler:
        """Return a sampler of rows of these lengths; `order` has the other arguments of TrainingSampler."""
        return TrainingSampler(len(lengths), batch_size, **order)

    def batch(self, rows: Sequence[Encoded], context_length: int) -> Batch:
        """Return rows as tensors, (B, T) int64 each.

        Args:
            rows: B rows.
            context_length: maximum of T.
        """
        return pad(rows, self.width(rows, context_length))

    def width(self, rows: Sequence[Encoded], context_length: int) -> int:
        """Return T, the length of the padded rows."""
        longest = max(len(row["tokens"]) for row in rows)
        return max(longest, min(-(-longest // self.multiple) * self.multiple, context_length))


class LengthGrouped(Padding):
    """A collation with rows of similar length in a batch, which needs less padding.

    Args:
        multiple: as for Padding.
        group: number of batches that are sorted together. With a larger number, there is less padding but the order
            is less random; 1 turns grouping off.

    Raises:
        ValueError: the group or the multiple is less than 1.
    """

    def __init__(self, multiple: int = 8, group: int = 50) -> None:
        super().__init__(multiple)
        self.group = at_least("group", group, least=1, remedy="1 (no grouping) or more")

    def sampler(self, lengths: Sequence[int], batch_size: int, **order: int) -> TrainingSampler:
        """Return a sampler that sorts the rows of every `group` batches by length."""
        return LengthGroupedSampler(lengths, batch_size, group=self.group, **order)


class Packing(Padding):
    """A collation with several examples per row, up to the context length, and almost no padding.

    A row also has `document_ids`, the example of each token, and `positions`, which restart at 0 in each example. A
    model that attends only within a document computes the same as without packing (Krell et al. 2021, "Efficient
    sequence packing without cross-contamination").
    """

    def arrange(self, examples: Sequence[Encoded], context_length: int) -> list[Encoded]:
        """Return the packed rows."""
        lengths = [len(example["tokens"]) for example in examples]
        return [
            pack([examples[index] for index in indices])
            for indices in best_fit(lengths, context_length)
        ]


def pack(examples: Sequence[Encoded]) -> Encoded:
    """Return one row of several examples, with `document_ids` and `positions`."""
    row: Encoded = {name: [] for name in (*examples[0], "document_ids", "positions")}
    for document, example in enumerate(examples):
        for name, values in example.items():
            row[name] += values
        length = len(example["tokens"])
        row["document_ids"] += [document] * length
        row["positions"] += range(length)
    return row


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack items into bins: longest first, each into the fullest bin with room for it (Johnson 1973).

    It needs at most 11/9 of the minimum number of bins, plus one, and is deterministic.

    Args:
        lengths: length of each item, at most the capacity.
        capacity: capacity of a bin.

    Returns:
        the indices of the items in each bin.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # free room and index of each bin with room, sorted
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        fullest = bisect_left(room, (lengths[item], 0))
        if fullest < len(room):
            left, number = room.pop(fullest)
        else:
            left, number = capacity, len(bins)
            bins.append([])
        bins[number].append(item)
        insort(room, (left - lengths[item], number))
    return bins
