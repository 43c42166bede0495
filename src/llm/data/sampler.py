"""The order of training: batch k is a function of the seed and k, and of nothing else."""

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from torch.utils.data import Sampler

ROUNDS = 10  # fewer leave the shuffles of two or three windows lopsided
BATCHES_AT_ONCE = (
    64  # numpy's cost is a call, not a number: draw the order of many batches together
)


def permuted(places: np.ndarray, size: int, *, keys: np.ndarray) -> np.ndarray:
    """Where a keyed shuffle of range(size) sends each place, without the memory for the shuffle.

    A Feistel network (Luby and Rackoff, 1988) is a bijection on the next power of four; a result
    outside the range is sent through again until it falls inside (cycle walking: Black and
    Rogaway, 2002), which leaves a bijection of range(size).

    Args:
        places: (N) places in the shuffled order, each below size.
        size: How many there are to shuffle.
        keys: (N) uint64: places with one key are of one shuffle.

    Returns:
        (N) what stands at these places.
    """
    half = np.uint64(max(3, (int(size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    result = places.astype(np.uint64)
    walking = np.ones(len(result), dtype=bool)
    while walking.any():
        left, right = result[walking] >> half, result[walking] & mask
        for turn in range(ROUNDS):
            left, right = right, left ^ (mixed(keys[walking] + np.uint64(turn), right) & mask)
        result[walking] = left << half | right
        walking = result >= size
    return result.astype(np.int64)


def mixed(key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Hash pairs of numbers by the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = key * np.uint64(0x9E3779B97F4A7C15) + value * np.uint64(0xD1B54A32D192ED03)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class TrainingSampler(Sampler[np.ndarray]):
    """An endless stream of batches: every epoch a new shuffle, and epochs joined without a seam.

    So no window is dropped, a batch may be larger than the data, and any place of the stream is
    reached at once. In a parallel run each device takes its rows of one global batch.

    Args:
        num_windows: How many windows there are.
        batch_size: Rows of a global batch.
        seed: Decides every shuffle.
        start: The batch to begin at.
        rank: Which device this is.
        world_size: How many devices share a global batch.
    """

    def __init__(
        self,
        num_windows: int,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.num_windows, self.batch_size, self.seed = num_windows, batch_size, seed
        self.start, self.rank, self.world_size = start, rank, world_size

    def batches(self, first: int, number: int) -> np.ndarray:
        """This device's windows of some batches, in rows: (number, batch_size / world_size)."""
        return self.whole_batches(first, number)[:, self.rank :: self.world_size]

    def whole_batches(self, first: int, number: int) -> np.ndarray:
        """The windows of some batches, those of all devices: (number, batch_size)."""
        places = np.arange(first * self.batch_size, (first + number) * self.batch_size)
        epochs = (places // self.num_windows).astype(np.uint64)
        keys = mixed(np.array([self.seed % 2**64], dtype=np.uint64), epochs)
        windows = permuted(places % self.num_windows, self.num_windows, keys=keys)
        return windows.reshape(number, self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        for first in count(self.start, BATCHES_AT_ONCE):
            yield from self.batches(first, BATCHES_AT_ONCE)


class LengthGroupedSampler(TrainingSampler):
    """TrainingSampler's stream with the rows of every few batches of an epoch sorted by length.

    The batches of such a group then follow one another in random order. A batch that holds the end of
    one epoch and the beginning of the next is left as it is, so every epoch still has each row once.

    Args:
        lengths: Of each row, in tokens.
        batch_size: As for TrainingSampler, like all that follows but for group.
        seed: Decides every shuffle.
        start: The batch to begin at.
        rank: Which device this is.
        world_size: How many devices share a global batch.
        group: How many batches are sorted together.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        group: int = 50,
    ) -> None:
        super().__init__(
            len(lengths), batch_size, seed=seed, start=start, rank=rank, world_size=world_size
        )
        self.lengths, self.group = np.asarray(lengths), group

    def whole_batches(self, first: int, number: int) -> np.ndarray:
        """The windows of some batches, those of all devices: (number, batch_size)."""
        batches: list[np.ndarray] = []
        while len(batches) < number:
            batch = first + len(batches)
            start, end = self._group_of(batch)
            batches.extend(self._grouped(start, end)[batch - start :])
        return np.stack(batches[:number])

    def _group_of(self, batch: int) -> tuple[int, int]:
        """The first batch of the group that a batch is in, and the one after the last."""
        epoch = batch * self.batch_size // self.num_windows
        start = -(-epoch * self.num_windows // self.batch_size)  # the epoch's first whole batch
        end = (epoch + 1) * self.num_windows // self.batch_size
        if batch >= end:  # it holds the end of an epoch
            return batch, batch + 1
        start += (batch - start) // self.group * self.group
        return start, min(start + self.group, end)

    def _grouped(self, start: int, end: int) -> np.ndarray:
        windows = super().whole_batches(start, end - start)
        if end - start == 1:
            return windows
        windows = windows.flatten()
        by_length = windows[np.argsort(self.lengths[windows], kind="stable")]
        key = mixed(np.array([self.seed % 2**64], dtype=np.uint64), np.array([start], np.uint64))
        turns = permuted(np.arange(end - start), end - start, keys=np.repeat(key, end - start))
        return by_length.reshape(end - start, self.batch_size)[turns]


class ValidationSampler(Sampler[np.ndarray]):
    """All windows in order, in batches of one size but the last, shared among devices evenly."""

    def __init__(self, num_windows: int, batch_size: int, *, rank: int = 0, world_size: int = 1):
        self.num_windows, self.batch_size = num_windows, batch_size
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return -(-self.num_windows // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        # Every device is given as many rows as any other: the numbers beyond the end are windows
        # in which nothing is asked.
        end = -(-self.num_windows // self.world_size) * self.world_size
        for first in range(0, end, self.batch_size):
            yield np.arange(first + self.rank, min(first + self.batch_size, end), self.world_size)
