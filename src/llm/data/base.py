"""The base class of all data modules: the training order, the position in it, and the loaders."""

import math
import warnings
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from llm.data.sampler import TrainingSampler, ValidationSampler
from llm.tokenizers.base import Tokenizer


class DataModule(LightningDataModule):
    """A data module whose training order is a function of the seed and the batch's index.

    `state_dict` has that index, and a loader made after `load_state_dict` resumes from it. A dataset returns whole
    batches, `dataset[indices]`. An index beyond the end gives a row whose targets are all ignored, so that all devices
    have equally many rows.

    The constructor of a subclass lists its own parameters and passes the others on as `**shared`.

    Args:
        batch_size: B, rows in a batch of all devices together.
        seed: seed of the training order.
        workers: number of processes that gather batches; it does not change the batches.
        split_seed: seed of the split into parts; None uses `seed`.

    Attributes:
        tokenizer: the trained tokenizer. Available after `setup`, like the ones below.
        fingerprint: a hash of the data.
        corpus: a hash of the held-out text, without the tokenizer; equal if metrics are comparable.
        vocabulary: a hash of the units that a loss is averaged over, such as the tokenizer's tokens.
        tokens_per_row: training tokens in a row, on average.
        longest_row: tokens in the longest training row, with padding.
        validation_bytes: UTF-8 bytes of the validation part's text.
        validation_limit: maximum bytes of text that a validation during training reads. It reads evenly spaced rows,
            the same share of the text for every tokenizer and context length.

    Raises:
        ValueError: a parameter is out of range.
    """

    row_name: ClassVar[str] = "rows"  # in messages
    tokenizer: Tokenizer
    fingerprint: str
    corpus: str
    vocabulary: str
    tokens_per_row: float
    longest_row: int
    validation_bytes: int
    validation_limit: float = math.inf

    def __init__(
        self, *, batch_size: int = 8, seed: int = 0, workers: int = 0, split_seed: int | None = None
    ) -> None:
        super().__init__()
        self.batch_size = at_least("batch_size", batch_size, least=1)
        self.workers = at_least("workers", workers, least=0)
        self.seed = seed
        self.split_seed = seed if split_seed is None else split_seed
        self._offset = 0  # the position minus the batches that the trainer has counted
        self._restored: int | None = None  # the position of the next training loader

    # Abstract members

    @abstractmethod
    def dataset(self, part: str) -> Dataset | None:
        """Return the rows of `train`, `validation` or `test`; None if the part does not exist."""

    @abstractmethod
    def describe(self) -> str:
        """Return a description of the data in one line."""

    @property
    @abstractmethod
    def is_ready(self) -> bool:
        """Whether `setup` needs neither a download nor the tokenization of a corpus."""

    # Validating during training

    @property
    def is_bounded(self) -> bool:
        """Whether validations during training read a fixed subset of the validation part."""
        return self.validation_limit < self.validation_bytes

    def describe_validation(self) -> str:
        """Return a description of a validation during training in one line."""
        whole = _length(self._rows("validation"))
        taken = self.evaluation_sampler(whole, number=self._bounded_rows).taken
        return (
            f"validated on a fixed {taken:,} of {whole:,} {self.row_name}, spread over the part "
            "(trainer.val_bytes); the whole part is evaluated at the end"
        )

    @property
    def _bounded_rows(self) -> int:
        share = self.validation_limit / self.validation_bytes
        return math.ceil(share * _length(self._rows("validation")))

    # Sizes

    @property
    def train_rows(self) -> int:
        """Number of training rows."""
        return _length(self._rows("train"))

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch, rounded up."""
        return -(-self.train_rows // self.batch_size)

    @property
    def tokens_per_batch(self) -> float:
        """Training tokens in a batch of all devices, on average."""
        return self.batch_size * self.tokens_per_row

    # Loading

    def train_dataloader(self) -> DataLoader:
        """Return an endless loader that starts at the current position."""
        start = self.position
        self._offset, self._restored = start - self._seen(), None
        sampler = self.training_sampler(seed=self.seed, start=start, **self._device())
        return self._loader(self._rows("train"), sampler)

    def val_dataloader(self) -> DataLoader:
        """Return a loader over the rows that a validation during training reads, in order."""
        number = self._bounded_rows if self.is_bounded else None
        return self.evaluation_loader("validation", number=number)

    def test_dataloader(self) -> DataLoader:
        """Return a loader over the whole test part, in order."""
        return self.evaluation_loader("test")

    def training_sampler(self, **order: int) -> Sampler:
        """Return the sampler of the training order; `order` has the other arguments of TrainingSampler."""
        return TrainingSampler(self.train_rows, self.batch_size, **order)

    def evaluation_sampler(self, num_rows: int, **order: Any) -> ValidationSampler:
        """Return the sampler of an evaluation; `order` has the other arguments of ValidationSampler."""
        return ValidationSampler(num_rows, self.batch_size, **order)

    def evaluation_loader(self, part: str, *, number: int | None = None) -> DataLoader:
        """Return a loader over evenly spaced rows of a part, in order; by default over all."""
        rows = self._rows(part)
        sampler = self.evaluation_sampler(_length(rows), number=number, **self._device())
        return self._loader(rows, sampler)

    def _rows(self, part: str) -> Dataset:
        dataset = self.dataset(part)
        if dataset is None:
            raise ValueError(f"data: has no {part} part; use data that has one")
        return dataset

    def _loader(self, rows: Dataset, sampler: Sampler) -> DataLoader:
        return DataLoader(
            rows,
            sampler=sampler,
            batch_size=None,  # the sampler gives the indices of a whole batch
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise iter(loader) draws from torch's global generator
        )

    def _device(self) -> dict[str, int]:
        """Return the `rank` of this device and `world_size`, the number of devices.

        Raises:
            ValueError: the batch size is not a multiple of the number of devices.
        """
        shares = (self.trainer and self.trainer.distributed_sampler_kwargs) or {}
        rank, world_size = shares.get("rank", 0), shares.get("num_replicas", 1)
        if self.batch_size % world_size:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared by {world_size} devices; use a "
                f"multiple of {world_size}"
            )
        return {"rank": rank, "world_size": world_size}

    # Position

    @property
    def position(self) -> int:
        """Index of the next training batch, counted from the start of training."""
        return self._offset + self._seen() if self._restored is None else self._restored

    def _seen(self) -> int:
        """Return the number of batches that the trainer has processed; a loader prefetches more."""
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # pyright: ignore

    def state_dict(self) -> dict[str, int | str]:
        """Return the position, with its batch size and fingerprint."""
        return {
            "position": self.position,
            "batch_size": self.batch_size,
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state_dict: dict[str, int | str]) -> None:
        """Set the position of the next training loader.

        If the batch size has changed, it is rounded up, so that no row is read twice.
        """
        rows = int(state_dict["position"]) * int(state_dict.get("batch_size", self.batch_size))
        self._restored = -(-rows // self.batch_size)
        stored, found = state_dict["fingerprint"], getattr(self, "fingerprint", None)
        if found and stored != found:
            warnings.warn(
                f"the text, the tokenizer or their settings have changed since the checkpoint "
                f"(fingerprint {found}, not {stored}); use the same data to resume exactly",
                stacklevel=2,
            )


def at_least(name: str, value: int, *, least: int, remedy: str | None = None) -> int:
    """Return the value, or raise a ValueError with a remedy if it is less than `least`."""
    if value < least:
        raise ValueError(f"{name}={value} is too small; use {remedy or f'{least} or more'}")
    return value


def _length(dataset: Dataset) -> int:
    return len(dataset)  # pyright: ignore[reportArgumentType]
