"""The order in which training and validation read the windows of a text: shuffled, or as contiguous streams.

Contiguous streams are for truncated backpropagation through time (Williams and Peng 1990; Mikolov et al. 2010; Zaremba
et al. 2014): a window continues that before it, and the model keeps its recurrent state from one to the next. They
ignore the borders of documents, as shuffled windows do.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from llm.data.base import at_least
from llm.data.corpora.token_file import TokenFile
from llm.data.corpora.windows import Batch, TrainingWindows, ValidationWindows
from llm.data.errors import DataError
from llm.data.sampler import TrainingSampler, ValidationSampler


class Order(ABC):
    """Which windows of a text make a batch, in training and in validation."""

    @abstractmethod
    def training(
        self, file: TokenFile, *, context_length: int, stride: int, batch_size: int
    ) -> Dataset[Batch]:
        """Return the training windows.

        Args:
            file: the training text.
            context_length: tokens in a window.
            stride: tokens from the start of one window to the next.
            batch_size: rows of a global batch.

        Raises:
            DataError: the text is too short.
        """

    @abstractmethod
    def validation(
        self, file: TokenFile, *, context_length: int, batch_size: int
    ) -> Dataset[Batch]:
        """Return the validation windows; the arguments are those of `training`."""

    @abstractmethod
    def training_sampler(self, num_rows: int, batch_size: int, **order: int) -> Sampler[np.ndarray]:
        """Return the endless sampler of the training windows; the arguments are those of `TrainingSampler`."""

    @abstractmethod
    def evaluation_sampler(
        self, num_rows: int, batch_size: int, *, number: int | None = None, **device: int
    ) -> ValidationSampler:
        """Return the sampler of the validation windows; the arguments are those of `ValidationSampler`."""

    @abstractmethod
    def describe(self, stride: int, *, context_length: int, batch_size: int) -> str:
        """Return a description for the summary of a run; empty for the default."""


class Shuffled(Order):
    """Training windows in another random order in each epoch, and validation windows in order, each read by itself."""

    def training(
        self, file: TokenFile, *, context_length: int, stride: int, batch_size: int
    ) -> TrainingWindows:
        """Return the training windows."""
        return TrainingWindows(file, context_length, stride)

    def validation(
        self, file: TokenFile, *, context_length: int, batch_size: int
    ) -> ValidationWindows:
        """Return the validation windows."""
        return ValidationWindows(file, context_length)

    def training_sampler(self, num_rows: int, batch_size: int, **order: int) -> TrainingSampler:
        """Return the endless sampler of the training windows."""
        return TrainingSampler(num_rows, batch_size, **order)

    def evaluation_sampler(
        self, num_rows: int, batch_size: int, *, number: int | None = None, **device: int
    ) -> ValidationSampler:
        """Return the sampler of the validation windows."""
        return ValidationSampler(num_rows, batch_size, number=number, **device)

    def describe(self, stride: int, *, context_length: int, batch_size: int) -> str:
        """Return nothing: this is the default."""
        return ""


class Contiguous(Order):
    """Streams of adjacent windows: each row of an optimizer step continues the same row of the step before.

    The training text is cut into as many streams of equal length as an optimizer step has rows. An epoch reads each of
    them once; what is left over at the end of the text, less than a window per stream, is not read. The validation text
    is cut into `batch_size` streams, and each of its tokens but the first is a target exactly once. A batch has
    `continues`, (B) bool: whether a row continues that of the batch before; otherwise it starts from the zero state.

    Args:
        accumulate: micro-batches of an optimizer step, each with streams of its own.

    Raises:
        ValueError: `accumulate` is less than 1.
    """

    requires: ClassVar[Mapping[str, str]] = {
        "recurrent": "has attention or positions, and data/order=contiguous carries the state of recurrent layers "
        "only; use model=lstm, gru, mamba2 or gated_deltanet, or data/order=shuffled"
    }

    def __init__(self, accumulate: int = 1) -> None:
        self.accumulate = at_least("accumulate", accumulate, least=1)

    def training(
        self, file: TokenFile, *, context_length: int, stride: int, batch_size: int
    ) -> "Streams":
        """Return the windows of all streams, one stream after the other; `stride` is not used."""
        windows = TrainingWindows(file, context_length, stride=context_length)
        streams = batch_size * self.accumulate
        length = len(windows) // streams
        if length < 2:
            raise DataError(
                f"data/order=contiguous: the training part has {len(file):,} tokens, and {streams} streams of two "
                f"windows each need {2 * streams * context_length + 1:,}; use a smaller data.batch_size, "
                "trainer.accumulate or context_length, or data/order=shuffled"
            )
        return Streams(windows, np.arange(streams) * length, length * streams)

    def validation(self, file: TokenFile, *, context_length: int, batch_size: int) -> "Streams":
        """Return the windows of all streams."""
        windows = ValidationWindows(file, context_length)
        starts = stream_bounds(len(windows), batch_size)[:-1]
        return Streams(windows, starts, len(windows))

    def training_sampler(self, num_rows: int, batch_size: int, **order: int) -> Sampler[np.ndarray]:
        """Return the endless sampler; the seed is not used."""
        del order["seed"]
        length = num_rows // (batch_size * self.accumulate)
        return ContiguousSampler(length, batch_size, self.accumulate, **order)

    def evaluation_sampler(
        self, num_rows: int, batch_size: int, *, number: int | None = None, **device: int
    ) -> "StreamSampler":
        """Return the sampler of the validation streams."""
        return StreamSampler(num_rows, batch_size, number=number, **device)

    def describe(self, stride: int, *, context_length: int, batch_size: int) -> str:
        """Return the number of streams."""
        line = f"contiguous: {batch_size * self.accumulate} streams, whose state is carried from window to window"
        return line if stride == context_length else f"{line} (data.stride is not used)"


@dataclass(eq=False)
class Streams(Dataset[Batch]):
    """Windows with `continues`: false for the first window of each stream.

    Attributes:
        windows: the windows.
        starts: the first window of each stream.
        size: number of windows in all streams.
    """

    windows: TrainingWindows | ValidationWindows
    starts: np.ndarray
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, windows: np.ndarray) -> Batch:
        """Gather a batch, as TrainingWindows does."""
        continues = ~np.isin(windows, self.starts)
        return self.windows[windows] | {"continues": torch.from_numpy(continues)}


@dataclass(eq=False)
class ContiguousSampler(Sampler[np.ndarray]):
    """The endless training order of streams of equal length.

    Args:
        length: windows of a stream.
        batch_size: rows of a global batch.
        accumulate: micro-batches of an optimizer step.
        start: index of the first batch.
        rank: index of this device.
        world_size: number of devices that share a global batch.
    """

    length: int
    batch_size: int
    accumulate: int
    start: int = 0
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[np.ndarray]:
        own = np.arange(self.rank, self.batch_size, self.world_size)
        for batch in count(self.start):
            step, micro_batch = divmod(batch, self.accumulate)
            streams = micro_batch * self.batch_size + own
            yield streams * self.length + step % self.length


@dataclass(eq=False)
class StreamSampler(ValidationSampler):
    """The order of a validation: `batch_size` streams side by side, or the beginning of each.

    The arguments are those of ValidationSampler. Streams differ by one window at most; the index of a missing one is
    beyond the end.

    Attributes:
        taken: number of windows that are read.
    """

    def __post_init__(self) -> None:
        self.bounds = stream_bounds(self.num_rows, self.batch_size)
        longest = int(np.diff(self.bounds).max())
        steps = longest if self.number is None else -(-self.number // self.batch_size)
        self.steps = min(steps, longest)
        self.taken = int(np.minimum(np.diff(self.bounds), self.steps).sum())

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[np.ndarray]:
        first, end = self.bounds[:-1], self.bounds[1:]
        for step in range(self.steps):
            windows = np.where(first + step < end, first + step, self.num_rows)
            yield windows[self.rank :: self.world_size]


def stream_bounds(windows: int, streams: int) -> np.ndarray:
    """Return where each stream begins, and the end of the last, (streams + 1)."""
    return np.arange(streams + 1) * windows // streams
