"""The data module for pretraining: any source and tokenizer, in windows of context_length tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from llm.data.base import DataModule, at_least
from llm.data.corpora.base import Source
from llm.data.corpora.corpus import Corpus
from llm.data.corpora.order import Order, Shuffled
from llm.data.corpora.preprocessing import Preprocessing, steps_of
from llm.data.corpora.token_cache import METADATA, damage
from llm.data.corpora.token_file import TokenFile
from llm.data.errors import DataError
from llm.data.sampler import ValidationSampler
from llm.files import read_object
from llm.tokenizers.base import TokenizerSpec, load


class TextDataModule(DataModule):
    """A data module of `tokens` and `targets`, (B, T) int64 each, for next-token prediction.

    Args:
        source: the source of the documents.
        tokenizer: a tokenizer, or a function that trains one on an iterable of training texts.
        context_length: T, tokens in a window.
        stride: tokens from the start of one training window to the next; by default context_length.
        validation_fraction: share of the text held out: whole documents if there are many, otherwise the
            end of each.
        preprocessing: steps applied to each document, in order; in a configuration by name.
        validation: a separate source of the held-out part, instead of a split.
        order: the order in which windows are read; None shuffles those of training.
        shared: the arguments of `DataModule`.

    Attributes:
        val_tokens: number of validation tokens. Available after `setup`.

    Raises:
        ValueError: a parameter is out of range.
        DataError: the text is shorter than a window (raised by `setup`).
    """

    row_name = "windows"

    def __init__(
        self,
        source: Source,
        tokenizer: TokenizerSpec,
        *,
        context_length: int,
        stride: int | None = None,
        validation_fraction: float = 0.1,
        preprocessing: dict[str, Preprocessing] | Sequence[Preprocessing] = (),
        validation: Source | None = None,
        order: Order | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.text = Corpus(
            source=source,
            tokenizer=tokenizer,
            preprocessing=steps_of(preprocessing),
            validation_fraction=validation_fraction,
            seed=self.split_seed,
            validation=validation,
        )
        self.order = order or Shuffled()
        self.context_length = at_least("context_length", context_length, least=1)
        self.tokens_per_row = self.longest_row = self.context_length
        self.stride = at_least("stride", context_length if stride is None else stride, least=1)
        if not 0 < validation_fraction < 1:
            raise ValueError(
                f"validation_fraction={validation_fraction} is not between 0 and 1; use a share such as 0.1"
            )

    # Preparing

    def prepare_data(self) -> None:
        """Download the text, train the tokenizer and tokenize, unless the token files exist."""
        self.text.folder()

    def setup(self, stage: str | None = None) -> None:
        """Open the token files."""
        folder = self.text.folder()
        self.metadata = read_object(folder / METADATA)
        self.fingerprint = folder.name
        self.corpus = self.text.held_out(self.metadata)
        self.vocabulary = self.metadata["tokenizer_sha256"][:24]
        self.tokenizer = load(folder / "tokenizer.json")
        self.val_tokens = self.metadata["validation"]["tokens"]
        self.validation_bytes = self.metadata["validation"]["bytes"]
        self._require_tokens("train", self.context_length + 1)
        self._require_tokens("validation", 2)
        dtype = np.dtype(self.metadata["dtype"])
        train = TokenFile(folder / "train.bin", dtype)
        validation = TokenFile(folder / "validation.bin", dtype)
        sizes = {"context_length": self.context_length, "batch_size": self.batch_size}
        self._training = self.order.training(train, stride=self.stride, **sizes)
        self._validation = self.order.validation(validation, **sizes)

    @property
    def is_ready(self) -> bool:
        """Whether the token files exist, so that `setup` only opens them."""
        return damage(self.text.path) is None

    def _require_tokens(self, part: str, needed: int) -> None:
        found = self.metadata[part]["tokens"]
        if found < needed:
            raise DataError(
                f"{self.metadata['source']}: the {part} part has {found} tokens, and a window of "
                f"context_length={self.context_length} needs {needed}; give more text, or use a smaller "
                f"context_length or another validation_fraction (now {self.text.validation_fraction})"
            )

    @property
    def val_bytes_per_token(self) -> float:
        """UTF-8 bytes per validation token, to convert nats per token to bits per byte."""
        return self.validation_bytes / self.val_tokens

    def dataset(self, part: str) -> Dataset | None:
        """Return the windows of a part; text has no test part."""
        return {"train": self._training, "validation": self._validation}.get(part)

    def training_sampler(self, **order: int) -> Sampler:
        """Return the sampler of the training order; `order` has the other arguments of TrainingSampler."""
        return self.order.training_sampler(self.train_rows, self.batch_size, **order)

    def evaluation_sampler(self, num_rows: int, **order: Any) -> ValidationSampler:
        """Return the sampler of an evaluation; `order` has the other arguments of ValidationSampler."""
        return self.order.evaluation_sampler(num_rows, self.batch_size, **order)

    def describe(self) -> str:
        """Return a description of the text in one line."""
        train, held_out = self.metadata["train"], self.metadata["validation"]
        line = (
            f"{self.metadata['source']}: {train['documents']:,} + {held_out['documents']:,} "
            f"documents, {train['tokens']:,} + {held_out['tokens']:,} tokens "
            f"(training + validation), {self.val_bytes_per_token:.2f} bytes a token"
        )
        if not self.metadata["is_drawn"]:
            line += f"; held out: {self.metadata['held_out']}"
        sizes = {"context_length": self.context_length, "batch_size": self.batch_size}
        if order := self.order.describe(self.stride, **sizes):
            line += f"; {order}"
        invalid = self.metadata["invalid_bytes"]
        return f"{line}, {invalid:,} invalid bytes replaced" if invalid else line
