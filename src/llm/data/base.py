"""What every data module shares: the order of training, the place in it, and its loaders."""

import math
import warnings
from abc import abstractmethod
from typing import ClassVar

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from llm.data.sampler import TrainingSampler, ValidationSampler
from llm.data.spaced import SpacedRows
from llm.tokenizers.base import Tokenizer

Batch = dict[str, Tensor]


class DataModule(LightningDataModule):
    """Batches in an order that is a function of the seed and the batch's number.

    `state_dict` holds that number, and a loader made after `load_state_dict` goes on from there. A
    subclass has datasets whose items are whole batches: `dataset[numbers]` gathers the rows of these
    numbers, and rows beyond the end, which make the shares of several devices even, ask for nothing.

    Args:
        batch_size: B, rows in a batch; in a parallel run the devices share them.
        seed: Decides the order.
        workers: Processes that gather batches; the batches are the same for any number.

    Attributes:
        tokenizer: The tokenizer, fitted; from `setup` on, as all that follows.
        fingerprint: A short name of the data, which changes when they do.
        corpus: A short name of what is held out, whatever the tokenizer: figures compare where it is the same.
        vocabulary: A short name of what else a loss is counted in, the tokenizer above all.

    Raises:
        ValueError: A parameter is out of range.
    """

    rows_are: ClassVar[str] = "rows"  # what a line calls them
    tokenizer: Tokenizer
    fingerprint: str
    corpus: str
    vocabulary: str

    def __init__(self, batch_size: int, *, seed: int, workers: int) -> None:
        super().__init__()
        self.batch_size = at_least("batch_size", batch_size, least=1)
        self.workers = at_least("workers", workers, least=0)
        self.seed = seed
        self._most_bytes = math.inf  # of text that a validation during training reads
        self._offset = 0  # the position less what the trainer has counted
        self._restored: int | None = None  # a position that waits for its loader

    # What a subclass has

    @abstractmethod
    def dataset(self, part: str) -> Dataset | None:
        """The rows of `train`, `validation` or `test`; None where there is no such part."""

    @abstractmethod
    def describe(self) -> str:
        """One line that says what the data are."""

    @property
    @abstractmethod
    def tokens_per_row(self) -> float:
        """Training tokens in a row, on average."""

    @property
    @abstractmethod
    def validation_bytes(self) -> int:
        """UTF-8 bytes of text in the validation part."""

    # Validating during training

    def bound_validation(self, most: float) -> None:
        """Let validations during training read at most so many bytes of text.

        The subset is a share of the rows, spread evenly: whatever the tokenizer and the context, it is the same
        share of the same text.
        """
        self._most_bytes = most

    @property
    def is_bounded(self) -> bool:
        """Whether validations during training read a fixed subset of the validation part."""
        return self._most_bytes < self.validation_bytes

    def describe_validation(self) -> str:
        """One line that says what a bounded validation reads."""
        whole = _length(self.dataset("validation"))
        return (
            f"validated on a fixed {self._bounded_rows:,} of {whole:,} {self.rows_are}, spread over the part "
            "(trainer.val_bytes); the whole part is measured at the end"
        )

    @property
    def _bounded_rows(self) -> int:
        share = self._most_bytes / self.validation_bytes
        return math.ceil(share * _length(self.dataset("validation")))

    # What there is

    @property
    def train_rows(self) -> int:
        """Rows of the training part."""
        return _length(self.dataset("train"))

    @property
    def batches_per_epoch(self) -> int:
        """Batches, rounded up, in which every training row is seen once."""
        return -(-self.train_rows // self.batch_size)

    @property
    def tokens_per_batch(self) -> float:
        """Training tokens in a batch, on average; of all devices together."""
        return self.batch_size * self.tokens_per_row

    # Loading

    def train_dataloader(self) -> DataLoader:
        """An endless loader that begins at the current position."""
        start = self.position
        self._offset, self._restored = start - self._seen(), None
        dataset = self.dataset("train")
        assert dataset is not None
        rank, world_size = self._device()
        sampler = self.training_sampler(start, rank=rank, world_size=world_size)
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> DataLoader:
        """A loader over what validations during training read, the whole part or a subset, once and in order."""
        if self.is_bounded:
            return self._once(SpacedRows(self._rows("validation"), self._bounded_rows))
        return self.whole("validation")

    def test_dataloader(self) -> DataLoader:
        """A loader over the whole test part, once and in order."""
        return self.whole("test")

    def training_sampler(self, start: int, *, rank: int, world_size: int) -> Sampler:
        """The order of training from batch `start` on."""
        return TrainingSampler(
            self.train_rows,
            self.batch_size,
            seed=self.seed,
            start=start,
            rank=rank,
            world_size=world_size,
        )

    def whole(self, part: str) -> DataLoader:
        """A loader over all rows of a part, once and in order."""
        return self._once(self._rows(part))

    def _rows(self, part: str) -> Dataset:
        dataset = self.dataset(part)
        if dataset is None:
            raise ValueError(f"these data have no {part} part")
        return dataset

    def _once(self, dataset: Dataset) -> DataLoader:
        rank, world_size = self._device()
        sampler = ValidationSampler(
            _length(dataset), self.batch_size, rank=rank, world_size=world_size
        )
        return self._loader(dataset, sampler)

    def _loader(self, rows: Dataset, sampler: Sampler) -> DataLoader:
        return DataLoader(
            rows,
            sampler=sampler,
            batch_size=None,  # the sampler names a batch, and the dataset gathers it at once
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or else iter(loader) draws from the global state
        )

    def _device(self) -> tuple[int, int]:
        """This device's rank and how many devices share a batch.

        Raises:
            ValueError: The batch cannot be shared evenly.
        """
        shares = (self.trainer and self.trainer.distributed_sampler_kwargs) or {}
        rank, world_size = shares.get("rank", 0), shares.get("num_replicas", 1)
        if self.batch_size % world_size:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared by {world_size} devices: choose a "
                f"multiple of {world_size}"
            )
        return rank, world_size

    # Position

    @property
    def position(self) -> int:
        """The number of the next training batch, counted from the start of training."""
        return self._offset + self._seen() if self._restored is None else self._restored

    def _seen(self) -> int:
        """Batches the trainer has worked through: a loader's own count runs ahead of it."""
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # pyright: ignore

    def state_dict(self) -> dict[str, int | str]:
        """The position, and of what."""
        return {
            "position": self.position,
            "batch_size": self.batch_size,
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state_dict: dict[str, int | str]) -> None:
        """Let the next training loader begin where a stored one stood.

        With another batch size that is the first whole batch after the rows that were read.
        """
        rows = int(state_dict["position"]) * int(state_dict.get("batch_size", self.batch_size))
        self._restored = -(-rows // self.batch_size)
        stored, found = state_dict["fingerprint"], getattr(self, "fingerprint", None)
        if found and stored != found:
            warnings.warn(
                f"the text, the tokenizer or their settings have changed since the checkpoint: "
                f"its tokens were {stored}, these are {found}",
                stacklevel=2,
            )


def at_least(name: str, value: int, *, least: int) -> int:
    """The value, or a ValueError that names the parameter."""
    if value < least:
        raise ValueError(f"{name}={value}: must be {least} or more")
    return value


def _length(dataset: Dataset | None) -> int:
    return 0 if dataset is None else len(dataset)  # pyright: ignore[reportArgumentType]
