"""Labelled examples of any kind for finetuning: read, split and encoded in memory."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from llm.data import fingerprint
from llm.data.module import Batch, DataModule, at_least
from llm.data.windows import IGNORED
from llm.tokenizers.tokenizer import Tokenizer, fit

Encoded = dict[str, list[int]]
TokenizerSpec = Tokenizer | Callable[[Iterable[str]], Tokenizer]
PARTS = ("train", "validation", "test")


class ExamplesDataModule(DataModule):
    """Examples held in memory; a batch is as long as its longest example.

    A subclass says how examples are read and split (`read`), what of them is text (`texts`), and how
    one is encoded (`encode`) and some are joined to a batch (`collate`).

    Args:
        tokenizer: A tokenizer, or a function that fits one to an iterable of training texts.
        context_length: The most tokens an example may have.
        batch_size: B, examples in a batch; in a parallel run the devices share them.
        seed: Decides the split and the order.
        workers: Processes that gather batches.

    Attributes:
        raw: The examples of each part as they were read; from `setup` on, as all that follows.
        encoded: The rows of each part as they are trained on.

    Raises:
        ValueError: A parameter is out of range.
        DataError: The files cannot be read, or a row of them is malformed (from `prepare_data`).
    """

    def __init__(
        self,
        tokenizer: TokenizerSpec,
        context_length: int,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, workers)
        self.spec = tokenizer
        self.context_length = at_least("context_length", context_length, 1)
        self.raw: dict[str, list[Any]] = {}
        self.encoded: dict[str, list[Encoded]] = {}

    # What a subclass says

    @abstractmethod
    def read(self) -> dict[str, list[Any]]:
        """The examples of each part: `train`, `validation` and, where there is one, `test`."""

    @abstractmethod
    def texts(self, example: Any) -> Iterable[str]:
        """The texts of an example, to which a tokenizer may be fitted."""

    @abstractmethod
    def encode(self, example: Any) -> Encoded:
        """An example as rows of numbers, among them `tokens`."""

    @abstractmethod
    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """A batch of some examples; a pure function."""

    @abstractmethod
    def settings(self) -> object:
        """Plain data on which the examples depend: the files' digests, the split, the template."""

    @property
    def special_tokens(self) -> Sequence[str]:
        """Names of special tokens that the tokenizer has to have."""
        return ()

    def encode_part(self, part: str, examples: Sequence[Any]) -> list[Encoded]:
        """The rows of a part: one for each example, unless a subclass drops or joins some."""
        return [self.encode(example) for example in examples]

    def blank(self, example: Encoded) -> Encoded:
        """The example with nothing asked: what fills the shares of devices up to equal numbers."""
        asked = {
            name: [IGNORED] * len(example[name])
            for name in ("targets", "labels")
            if name in example
        }
        return {**example, **asked}

    # Preparing

    def prepare_data(self) -> None:
        """Read the files, so that what is wrong in them is said before anything starts."""
        if not self.raw:
            self.raw = self.read()

    def setup(self, stage: str | None = None) -> None:
        """Fit or extend the tokenizer and encode every part, once."""
        self.prepare_data()
        if self.encoded:
            return
        texts = (text for example in self.raw["train"] for text in self.texts(example))
        self.tokenizer = fit(self.spec, texts)
        if self.special_tokens:
            self.tokenizer = self.tokenizer.with_special_tokens(self.special_tokens)
        self.encoded = {part: self.encode_part(part, self.raw[part]) for part in self.raw}
        settings = {
            "examples": self.settings(),
            "tokenizer": fingerprint.of_tokenizer(self.spec),
            "special_tokens": list(self.special_tokens),
            "context_length": self.context_length,
            "seed": self.seed,
        }
        self.fingerprint = fingerprint.of_settings(settings)

    # What there is

    @property
    def tokens_per_row(self) -> float:
        """Training tokens in a row, on average."""
        rows = self.encoded["train"]
        return sum(len(row["tokens"]) for row in rows) / max(len(rows), 1)

    def dataset(self, part: str) -> Dataset | None:
        """The rows of a part."""
        rows = self.encoded.get(part)
        return Examples(rows, self.collate, self.blank) if rows else None


class Examples(Dataset[Batch]):
    """Rows in memory, gathered a whole batch at a time.

    Args:
        rows: The encoded examples.
        collate: Joins some to a batch.
        blank: Takes from an example what it asks, for numbers beyond the end.
    """

    def __init__(
        self,
        rows: Sequence[Encoded],
        collate: Callable[[Sequence[Encoded]], Batch],
        blank: Callable[[Encoded], Encoded],
    ) -> None:
        self.rows, self.collate, self.blank = rows, collate, blank

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: np.ndarray) -> Batch:
        """Gather the rows of these numbers, (B)."""
        end = len(self.rows)
        return self.collate(
            [self.rows[n] if n < end else self.blank(self.rows[0]) for n in numbers.tolist()]
        )
