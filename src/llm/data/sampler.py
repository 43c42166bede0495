"""The training order: batch k is a function of the seed and k only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from torch.utils.data import Sampler

ROUNDS = 10  # with fewer, shuffles of two or three windows are biased
BATCHES_AT_ONCE = 64  # a NumPy call costs about the same for one batch as for many


def permute(positions: np.ndarray, size: int, *, keys: np.ndarray) -> np.ndarray:
    """Return items of a keyed shuffle of range(size), without storing the shuffle.

    A Feistel network (Luby and Rackoff, 1988) is a bijection on the next power of four. A result outside the range is
    encrypted again until it is inside (cycle walking: Black and Rogaway, 2002).

    Args:
        positions: (N) positions in the shuffled order, each less than size.
        size: number of items to shuffle.
        keys: (N) uint64, the shuffle that each position belongs to.

    Returns:
        (N) int64, the items at these positions.
    """
    half = np.uint64(max(3, (int(size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    result = positions.astype(np.uint64)
    walking = np.ones(len(result), dtype=bool)
    while walking.any():
        left, right = result[walking] >> half, result[walking] & mask
        for step in range(ROUNDS):
            left, right = right, left ^ (mix(keys[walking] + np.uint64(step), right) & mask)
        result[walking] = left << half | right
        walking = result >= size
    return result.astype(np.int64)


def mix(key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Hash pairs of numbers by the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = key * np.uint64(0x9E3779B97F4A7C15) + value * np.uint64(0xD1B54A32D192ED03)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(eq=False)
class TrainingSampler(Sampler[np.ndarray]):
    """An endless stream of batches with a new shuffle in every epoch.

    A batch may span two epochs, so no row is dropped, and a batch may be larger than the data. Any batch is computed
    directly. Each device of a parallel run takes its rows of a global batch.

    Args:
        num_rows: number of rows.
        batch_size: rows of a global batch.
        seed: seed of all shuffles.
        start: index of the first batch.
        rank: index of this device.
        world_size: number of devices that share a global batch.
    """

    num_rows: int
    batch_size: int
    seed: int
    start: int = 0
    rank: int = 0
    world_size: int = 1

    def batches(self, first: int, number: int) -> np.ndarray:
        """Return the rows of this device in `number` batches, (number, batch_size / world_size)."""
        return self.whole_batches(first, number)[:, self.rank :: self.world_size]

    def whole_batches(self, first: int, number: int) -> np.ndarray:
        """Return the rows of all devices in `number` batches, (number, batch_size)."""
        positions = np.arange(first * self.batch_size, (first + number) * self.batch_size)
        keys = self.shuffle_keys(positions // self.num_rows)
        rows = permute(positions % self.num_rows, self.num_rows, keys=keys)
        return rows.reshape(number, self.batch_size)

    def shuffle_keys(self, numbers: np.ndarray) -> np.ndarray:
        """Return the keys of the shuffles with these numbers, (N) uint64."""
        seed = np.array([self.seed % 2**64], dtype=np.uint64)
        return mix(seed, numbers.astype(np.uint64))

    def __iter__(self) -> Iterator[np.ndarray]:
        for first in count(self.start, BATCHES_AT_ONCE):
            yield from self.batches(first, BATCHES_AT_ONCE)


class LengthGroupedSampler(TrainingSampler):
    """A TrainingSampler that sorts the rows of a group of batches by length; the batches are in random order.

    A batch that spans two epochs is not sorted, so every epoch still has each row once.

    Args:
        lengths: length of each row, in tokens.
        batch_size: rows of a global batch.
        group: number of batches that are sorted together.
        order: the other arguments of TrainingSampler.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, group: int, **order: int
    ) -> None:
        super().__init__(len(lengths), batch_size, **order)
        self.lengths, self.group = np.asarray(lengths), group

    def whole_batches(self, first: int, number: int) -> np.ndarray:
        """Return the rows of all devices in `number` batches, (number, batch_size)."""
        batches: list[np.ndarray] = []
        while len(batches) < number:
            batch = first + len(batches)
            start, end = self._group_of(batch)
            batches.extend(self._grouped(start, end)[batch - start :])
        return np.stack(batches[:number])

    def _group_of(self, batch: int) -> tuple[int, int]:
        """Return the first batch of a batch's group, and the batch after its last."""
        epoch = batch * self.batch_size // self.num_rows
        start = -(-epoch * self.num_rows // self.batch_size)  # the epoch's first whole batch
        end = (epoch + 1) * self.num_rows // self.batch_size
        if batch >= end:  # it spans two epochs
            return batch, batch + 1
        start += (batch - start) // self.group * self.group
        return start, min(start + self.group, end)

    def _grouped(self, start: int, end: int) -> np.ndarray:
        size = end - start
        batches = super().whole_batches(start, size)
        if size == 1:
            return batches
        rows = batches.flatten()
        by_length = rows[np.argsort(self.lengths[rows], kind="stable")]
        order = permute(np.arange(size), size, keys=self.shuffle_keys(np.full(size, start)))
        return by_length.reshape(size, self.batch_size)[order]


@dataclass(eq=False)
class ValidationSampler(Sampler[np.ndarray]):
    """Evenly spaced rows in order, shared evenly among devices; the last batch may be smaller.

    Args:
        num_rows: number of rows.
        batch_size: rows of a global batch.
        number: number of rows to take; None for all.
        rank: index of this device.
        world_size: number of devices that share a global batch.
    """

    num_rows: int
    batch_size: int
    number: int | None = None
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self.taken = self.num_rows if self.number is None else self.number

    def __len__(self) -> int:
        return -(-self.taken // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        # Devices need equally many rows, so the last indices may be beyond the end; targets of these rows are ignored.
        end = -(-self.taken // self.world_size) * self.world_size
        for first in range(0, end, self.batch_size):
            own = np.arange(first + self.rank, min(first + self.batch_size, end), self.world_size)
            yield np.where(own < self.taken, own * self.num_rows // self.taken, self.num_rows)
