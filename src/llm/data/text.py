"""Text for pretraining: any source and any tokenizer, in windows of context_length tokens."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from llm.data import cache
from llm.data.corpus import Corpus
from llm.data.errors import DataError
from llm.data.preprocessing import Preprocessing, steps_of
from llm.data.sampler import TrainingSampler, ValidationSampler
from llm.data.source import Source
from llm.data.token_cache import read_metadata
from llm.data.token_file import TokenFile
from llm.data.windows import TrainingWindows, ValidationWindows
from llm.tokenizers.tokenizer import Tokenizer, load


class TextDataModule(LightningDataModule):
    """Batches of `tokens` and `targets`, (B, T) int64 each, for next-token prediction.

    The order of training is a function of the seed and the batch's number: `state_dict` holds that
    number, and a loader made after `load_state_dict` goes on from there.

    Args:
        source: The documents.
        tokenizer: A tokenizer, or a function that fits one to an iterable of training texts.
        context_length: T, tokens in a window.
        batch_size: B, windows in a batch; in a parallel run the devices share them.
        stride: Tokens from the start of one training window to the next; context_length by
            default, 1 for every window there is.
        validation_fraction: Share of the text held out: whole documents where there are several,
            the end of the text where there is one.
        seed: Decides the split and the order.
        preprocessing: Steps applied to each document, in order; in a configuration by name.
        workers: Processes that gather batches; the batches are the same for any number.
        cache_dir: Where token files are kept, instead of the cache folder.
        validation: A source of its own for the held-out part; then nothing is split.

    Attributes:
        tokenizer: The tokenizer, fitted; from `setup` on, as all that follows.
        train_tokens: Tokens of the training part.
        val_tokens: Tokens of the validation part.
        val_bytes_per_token: UTF-8 bytes a validation token stands for: bits per byte are nats per
            token / ln 2 / this.
        train_windows: Windows in the training part.
        batches_per_epoch: Batches, rounded up, in which every training window is seen once.

    Raises:
        ValueError: A parameter is out of range.
        DataError: The text is shorter than a window (from `setup`).
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer | Callable[[Iterable[str]], Tokenizer],
        context_length: int,
        batch_size: int,
        stride: int | None = None,
        validation_fraction: float = 0.1,
        seed: int = 0,
        preprocessing: dict[str, Preprocessing] | Sequence[Preprocessing] = (),
        workers: int = 0,
        cache_dir: str | Path | None = None,
        validation: Source | None = None,
    ) -> None:
        super().__init__()
        self.corpus = Corpus(
            source, tokenizer, steps_of(preprocessing), validation_fraction, seed, validation
        )
        self.context_length = at_least("context_length", context_length, 1)
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.stride = at_least("stride", context_length if stride is None else stride, 1)
        self.workers = at_least("workers", workers, 0)
        self.seed = seed
        self.cache_dir = cache_dir
        if not 0 < validation_fraction < 1:
            raise ValueError(
                f"validation_fraction={validation_fraction} is not between 0 and 1: try 0.1"
            )
        self._offset = 0  # the position less what the trainer has counted
        self._restored: int | None = None  # a position that waits for its loader

    # Preparing

    def prepare_data(self) -> None:
        """Fetch, fit and tokenize, once on each machine; at once where it was done before."""
        self._folder()

    def setup(self, stage: str | None = None) -> None:
        """Open the token files."""
        folder = self._folder()
        self.metadata = read_metadata(folder)
        self.fingerprint = folder.name
        self.tokenizer = load(folder / "tokenizer.json")
        dtype = np.dtype(self.metadata["dtype"])
        self._require_tokens("train", self.context_length + 1)
        self._require_tokens("validation", 2)
        self._training = TrainingWindows(
            TokenFile(folder / "train.bin", dtype), self.context_length, self.stride
        )
        self._validation = ValidationWindows(
            TokenFile(folder / "validation.bin", dtype), self.context_length
        )

    def _folder(self) -> Path:
        root = Path(self.cache_dir) if self.cache_dir else cache.writable_folder("tokens")
        return self.corpus.folder(root)

    def _require_tokens(self, part: str, needed: int) -> None:
        found = self.metadata[part]["tokens"]
        if found >= needed:
            return
        raise DataError(
            f"{self.metadata['source']}: the {part} part has {found} tokens, and a window of "
            f"context_length={self.context_length} needs {needed}: give more text, or choose a "
            f"smaller context_length or another validation_fraction "
            f"(now {self.corpus.validation_fraction})"
        )

    # What there is

    @property
    def train_tokens(self) -> int:
        """Tokens of the training part."""
        return self.metadata["train"]["tokens"]

    @property
    def val_tokens(self) -> int:
        """Tokens of the validation part."""
        return self.metadata["validation"]["tokens"]

    @property
    def val_bytes_per_token(self) -> float:
        """UTF-8 bytes of text for each validation token."""
        return self.metadata["validation"]["bytes"] / self.val_tokens

    @property
    def train_windows(self) -> int:
        """Windows in the training part."""
        return len(self._training)

    @property
    def batches_per_epoch(self) -> int:
        """Batches, rounded up, in which every training window is seen once."""
        return -(-self.train_windows // self.batch_size)

    def describe(self) -> str:
        """One line that says what the text is."""
        train, held_out = self.metadata["train"], self.metadata["validation"]
        line = (
            f"{self.metadata['source']}: {train['documents']:,} + {held_out['documents']:,} "
            f"documents, {train['tokens']:,} + {held_out['tokens']:,} tokens "
            f"(training + validation), {self.val_bytes_per_token:.2f} bytes a token"
        )
        invalid = self.metadata["invalid_bytes"]
        return f"{line}, {invalid:,} invalid bytes replaced" if invalid else line

    # Loading

    def train_dataloader(self) -> DataLoader:
        """An endless loader that begins at the current position."""
        start = self.position
        self._offset, self._restored = start - self._seen(), None
        sampler = TrainingSampler(
            self.train_windows, self.batch_size, self.seed, start, *self._device()
        )
        return self._loader(self._training, sampler)

    def val_dataloader(self) -> DataLoader:
        """A loader over the whole validation part, once and in order."""
        sampler = ValidationSampler(len(self._validation), self.batch_size, *self._device())
        return self._loader(self._validation, sampler)

    def _loader(self, windows: Dataset, sampler: Sampler) -> DataLoader:
        return DataLoader(
            windows,
            sampler=sampler,
            batch_size=None,  # the sampler names a batch, and the windows gather it in one read
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
        return {"position": self.position, "fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, int | str]) -> None:
        """Let the next training loader begin where a stored one stood."""
        self._restored = int(state_dict["position"])
        stored, found = state_dict["fingerprint"], getattr(self, "fingerprint", None)
        if found and stored != found:
            warnings.warn(
                f"the text, the tokenizer or their settings have changed since the checkpoint: "
                f"its tokens were {stored}, these are {found}",
                stacklevel=2,
            )


def at_least(name: str, value: int, least: int) -> int:
    """The value, or a ValueError that names the parameter."""
    if value < least:
        raise ValueError(f"{name}={value}: must be {least} or more")
    return value
