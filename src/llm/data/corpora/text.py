"""Text for pretraining: any source and any tokenizer, in windows of context_length tokens."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from llm.data import cache_folder
from llm.data.base import DataModule, at_least
from llm.data.corpora.base import Source
from llm.data.corpora.corpus import Corpus
from llm.data.corpora.preprocessing import Preprocessing, steps_of
from llm.data.corpora.token_cache import read_metadata
from llm.data.corpora.token_file import TokenFile
from llm.data.corpora.windows import TrainingWindows, ValidationWindows
from llm.data.errors import DataError
from llm.tokenizers.base import Tokenizer, load


class TextDataModule(DataModule):
    """Batches of `tokens` and `targets`, (B, T) int64 each, for next-token prediction.

    Args:
        source: The documents.
        tokenizer: A tokenizer, or a function that fits one to an iterable of training texts.
        context_length: T, tokens in a window.
        batch_size: B, windows in a batch; in a parallel run the devices share them.
        stride: Tokens from the start of one training window to the next; context_length by
            default, 1 for every window there is.
        validation_fraction: Share of the text held out: whole documents where there are many, the end of
            each where there are few.
        seed: Decides the order.
        preprocessing: Steps applied to each document, in order; in a configuration by name.
        workers: Processes that gather batches; the batches are the same for any number.
        cache_dir: Where token files are kept, instead of the cache folder.
        validation: A source of its own for the held-out part; then nothing is split.
        split_seed: Decides which documents are held out; None takes `seed`.

    Attributes:
        train_tokens: Tokens of the training part; from `setup` on, as all that follows.
        val_tokens: Tokens of the validation part.
        val_bytes_per_token: UTF-8 bytes a validation token stands for: bits per byte are nats per
            token / ln 2 / this.

    Raises:
        ValueError: A parameter is out of range.
        DataError: The text is shorter than a window (from `setup`).
    """

    rows_are = "windows"

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer | Callable[[Iterable[str]], Tokenizer],
        *,
        context_length: int,
        batch_size: int,
        stride: int | None = None,
        validation_fraction: float = 0.1,
        seed: int = 0,
        preprocessing: dict[str, Preprocessing] | Sequence[Preprocessing] = (),
        workers: int = 0,
        cache_dir: str | Path | None = None,
        validation: Source | None = None,
        split_seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, seed=seed, workers=workers)
        self.text = Corpus(
            source=source,
            tokenizer=tokenizer,
            preprocessing=steps_of(preprocessing),
            validation_fraction=validation_fraction,
            seed=seed if split_seed is None else split_seed,
            validation=validation,
        )
        self.context_length = at_least("context_length", context_length, least=1)
        self.stride = at_least("stride", context_length if stride is None else stride, least=1)
        self.cache_dir = cache_dir
        if not 0 < validation_fraction < 1:
            raise ValueError(
                f"validation_fraction={validation_fraction} is not between 0 and 1: try 0.1"
            )

    # Preparing

    def prepare_data(self) -> None:
        """Fetch, fit and tokenize, once on each machine; at once where it was done before."""
        self._folder()

    def setup(self, stage: str | None = None) -> None:
        """Open the token files."""
        folder = self._folder()
        self.metadata = read_metadata(folder)
        self.fingerprint = folder.name
        self.corpus = self.text.held_out(self.metadata)
        self.vocabulary = self.metadata["tokenizer_sha256"][:24]
        self.tokenizer = load(folder / "tokenizer.json")
        dtype = np.dtype(self.metadata["dtype"])
        self._require_tokens("train", self.context_length + 1)
        self._require_tokens("validation", 2)
        self._training = TrainingWindows(
            TokenFile(folder / "train.bin", dtype), self.context_length, stride=self.stride
        )
        self._validation = ValidationWindows(
            TokenFile(folder / "validation.bin", dtype), self.context_length
        )

    @property
    def longest_row(self) -> int:
        """Tokens of every row."""
        return self.context_length

    @property
    def is_at_hand(self) -> bool:
        """Whether the tokens are there already, so that `setup` has nothing to do but open them."""
        return self.text.is_written(self._root())

    def _folder(self) -> Path:
        return self.text.folder(self._root())

    def _root(self) -> Path:
        return Path(self.cache_dir) if self.cache_dir else cache_folder.writable_folder("tokens")

    def _require_tokens(self, part: str, needed: int) -> None:
        found = self.metadata[part]["tokens"]
        if found >= needed:
            return
        raise DataError(
            f"{self.metadata['source']}: the {part} part has {found} tokens, and a window of "
            f"context_length={self.context_length} needs {needed}: give more text, or choose a "
            f"smaller context_length or another validation_fraction "
            f"(now {self.text.validation_fraction})"
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
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the validation part."""
        return self.metadata["validation"]["bytes"]

    @property
    def val_bytes_per_token(self) -> float:
        """UTF-8 bytes of text for each validation token."""
        return self.validation_bytes / self.val_tokens

    @property
    def tokens_per_row(self) -> int:
        """Tokens in a window."""
        return self.context_length

    def dataset(self, part: str) -> Dataset | None:
        """The windows of a part; text has no test part."""
        return {"train": self._training, "validation": self._validation}.get(part)

    def describe(self) -> str:
        """One line that says what the text is."""
        train, held_out = self.metadata["train"], self.metadata["validation"]
        line = (
            f"{self.metadata['source']}: {train['documents']:,} + {held_out['documents']:,} "
            f"documents, {train['tokens']:,} + {held_out['tokens']:,} tokens "
            f"(training + validation), {self.val_bytes_per_token:.2f} bytes a token"
        )
        if not self.metadata["is_drawn"]:
            line += f"; held out: {self.metadata['held_out']}"
        invalid = self.metadata["invalid_bytes"]
        return f"{line}, {invalid:,} invalid bytes replaced" if invalid else line
