"""From examples of many lengths to batches: padding, batches of like lengths, packing.

An example is a dictionary of lists of one length: `tokens`, `targets` and what else stands for each
token. Rows are filled up on the right, so a causal model needs no mask: what comes after a token,
it does not see, and what is filled up asks for nothing.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from functools import partial

import torch

from llm.data.corpora.windows import Batch
from llm.data.sampler import LengthGroupedSampler, TrainingSampler
from llm.nn.ignore_index import IGNORE_INDEX

Encoded = dict[str, list[int]]
# What a row is filled up with; no real token is of a document below 0.
FILL = {"tokens": 0, "targets": IGNORE_INDEX, "positions": 0, "document_ids": -1}


def pad(rows: Sequence[Encoded], length: int) -> Batch:
    """Rows of any lengths as tensors of (B, T) int64 by name, filled up on the right.

    Args:
        rows: B dictionaries of lists with the same names, which are those of `FILL`.
        length: T, at least that of the longest row.
    """
    return {
        name: torch.tensor(
            [row[name] + [FILL[name]] * (length - len(row[name])) for row in rows],
            dtype=torch.int64,
        )
        for name in rows[0]
    }


def attended(rows: Sequence[Encoded], width: int | None = None) -> Batch:
    """As `pad`, with `attention_mask` (B, T) bool: true where a token is real.

    Args:
        rows: B rows, of which every list stands for tokens.
        width: T; by default the length of the longest row.
    """
    lengths = torch.tensor([len(row["tokens"]) for row in rows])
    width = int(lengths.max()) if width is None else width
    return pad(rows, width) | {"attention_mask": torch.arange(width) < lengths[:, None]}


class Padding:
    """A row an example, in shuffled order, filled up to the longest of its batch.

    Args:
        multiple: Rows are filled up to a multiple of this many tokens, as far as the context allows:
            tensor cores like it, and fewer lengths are fewer kernels to prepare and keep.

    Raises:
        ValueError: The multiple is below 1.
    """

    def __init__(self, multiple: int = 8) -> None:
        if multiple < 1:
            raise ValueError(f"multiple={multiple}: give 1 for no more than the longest, or 8")
        self.multiple = multiple

    def arrange(self, examples: Sequence[Encoded], context_length: int) -> list[Encoded]:
        """The rows that some examples make, none longer than the context."""
        return list(examples)

    def sampler(self, lengths: Sequence[int]) -> Callable[..., TrainingSampler]:
        """What makes the order of training for rows of these lengths, from a batch size and a seed on."""
        return partial(TrainingSampler, len(lengths))

    def batch(self, rows: Sequence[Encoded], context_length: int) -> Batch:
        """Some rows as tensors, (B, T) int64 each.

        Args:
            rows: B rows.
            context_length: The most that T may be.
        """
        return pad(rows, self.width(rows, context_length))

    def width(self, rows: Sequence[Encoded], context_length: int) -> int:
        """T, the length that some rows are filled up to."""
        longest = max(len(row["tokens"]) for row in rows)
        return max(longest, min(-(-longest // self.multiple) * self.multiple, context_length))


class LengthGrouped(Padding):
    """Padding in batches of rows of like length, of which less is filling.

    Args:
        multiple: As for Padding.
        group: Batches whose rows are sorted among themselves; more waste less and mix less.

    Raises:
        ValueError: The group is below 1, or the multiple.
    """

    def __init__(self, multiple: int = 8, group: int = 50) -> None:
        super().__init__(multiple)
        if group < 1:
            raise ValueError(f"group={group}: give 1 (which groups nothing) or more")
        self.group = group

    def sampler(self, lengths: Sequence[int]) -> Callable[..., TrainingSampler]:
        """As for Padding, with the rows of every few batches sorted by length."""
        return partial(LengthGroupedSampler, lengths, group=self.group)


class Packing(Padding):
    """Several examples a row, up to the context: next to nothing is filling.

    Beside its tokens a row holds `document_ids`, which example each is of, and `positions`, which start
    anew in each. A model that attends within a document only computes for every example what it
    would alone (Krell et al. 2021, "Efficient sequence packing without cross-contamination").
    """

    def arrange(self, examples: Sequence[Encoded], context_length: int) -> list[Encoded]:
        """The rows that the examples are packed into."""
        lengths = [len(example["tokens"]) for example in examples]
        return [
            packed([examples[place] for place in places])
            for places in best_fit(lengths, context_length)
        ]


def packed(examples: Sequence[Encoded]) -> Encoded:
    """One row of several examples, with `document_ids` and `positions`."""
    row: Encoded = {name: [] for name in (*examples[0], "document_ids", "positions")}
    for document, example in enumerate(examples):
        for name, values in example.items():
            row[name] += values
        length = len(example["tokens"])
        row["document_ids"] += [document] * length
        row["positions"] += range(length)
    return row


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack: the longest first, each into the fullest bin that has room for it (Johnson 1973).

    At most 11/9 of the fewest bins possible, and one more. The same lengths give the same bins.

    Args:
        lengths: Of each item, at most the capacity.
        capacity: Of a bin.

    Returns:
        The items' numbers, a list a bin.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # of each bin that has any, with its number; sorted
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        place = bisect_left(room, (lengths[item], 0))
        if place < len(room):
            left, number = room.pop(place)
        else:
            left, number = capacity, len(bins)
            bins.append([])
        bins[number].append(item)
        insort(room, (left - lengths[item], number))
    return bins
