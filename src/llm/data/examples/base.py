"""The base class of data modules for finetuning, whose examples fit in memory."""

import json
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch.utils.data import Dataset, Sampler

from llm.data import data_fingerprint
from llm.data.base import DataModule, at_least
from llm.data.corpora.windows import Batch
from llm.data.delimited import Columns, Layout
from llm.data.errors import DataError
from llm.data.examples.collation import Encoded, Packing, Padding
from llm.data.malformed import Malformed
from llm.data.record_reader import Paths, Record, is_here, read_records, title
from llm.data.split import split_examples
from llm.nn.ignore_index import IGNORE_INDEX
from llm.tokenizers.base import TokenizerSpec, fit


class ExamplesDataModule(DataModule):
    """A data module that reads, splits and encodes examples in memory.

    A subclass defines how a row of a file becomes an example (`parse`), which texts an example has (`texts`), and how
    examples are encoded (`encode`) and collated (`collate`).

    Args:
        path: a JSON, JSON lines, CSV or TSV file, several files, or a download.
        tokenizer: a tokenizer, or a function that trains one on an iterable of training texts.
        context_length: maximum number of tokens in a row.
        collation: arranges examples in rows, and rows in batches.
        columns: see Layout.
        delimiter: see Layout.
        encoding: see Layout.
        quoting: see Layout.
        malformed: whether rows that cannot be used raise an error (`stop`) or are left out (`skip`).
        validation_fraction: share of the examples for validation, unless it has its own files.
        test_fraction: share of the examples for the test, unless it has its own files.
        validation_path: files for validation.
        test_path: files for the test.
        shared: the arguments of `DataModule`.

    Attributes:
        kind: name of the examples in messages.
        may_pack: whether a row may have several examples.
        averages_tokens: whether the loss is a mean over tokens and so depends on the tokenizer.
        special_tokens: names of special tokens that the tokenizer must have.
        raw: the examples of each part. This and the following attributes are available after `setup`.
        encoded: the rows of each part.
        skipped: number of malformed rows left out.
        unused: for each field that is not read, number of rows that have a value in it.

    Raises:
        ValueError: a parameter is out of range.
        DataError: a file cannot be used, a part is empty, or a row cannot be used and `malformed` is `stop` (raised
            by `prepare_data` and `setup`).
    """

    kind: ClassVar[str] = "examples"
    may_pack: ClassVar[bool] = False
    averages_tokens: ClassVar[bool] = True
    special_tokens: Sequence[str] = ()

    def __init__(
        self,
        *,
        path: Paths,
        tokenizer: TokenizerSpec,
        context_length: int,
        collation: Padding,
        columns: Columns = None,
        delimiter: str | None = None,
        encoding: str | None = None,
        quoting: bool = True,
        malformed: Literal["stop", "skip"] = "stop",
        validation_fraction: float = 0.05,
        test_fraction: float = 0.1,
        validation_path: Paths | None = None,
        test_path: Paths | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.layout = Layout(columns, delimiter, encoding, quoting)
        self.files = {"train": path, "validation": validation_path, "test": test_path}
        self.spec, self.collation = tokenizer, collation
        self.context_length = at_least("context_length", context_length, least=1)
        self.malformed: Literal["stop", "skip"] = malformed
        self.fractions = {"validation": validation_fraction, "test": test_fraction}
        if min(self.fractions.values()) < 0 or sum(self.fractions.values()) >= 1:
            raise ValueError(
                f"validation_fraction={validation_fraction} and test_fraction={test_fraction} are out of range or "
                "leave nothing to train on; use 0 or more for each, and a sum less than 1"
            )
        if isinstance(collation, Packing) and not self.may_pack:
            raise ValueError(
                f"collation: packing is not possible for {self.kind}, each of which needs its own row; "
                "use padding or length_grouped"
            )
        self.raw: dict[str, list[Any]] = {}
        self.encoded: dict[str, list[Encoded]] = {}
        self.skipped = 0
        self.unused: Counter[str] = Counter()

    # Abstract members, and hooks with defaults

    @abstractmethod
    def parse(self, row: Record) -> Any:
        """Return a row of a file as an example, with its file and line in `where`.

        Raises:
            ValueError: the row cannot be used.
        """

    @abstractmethod
    def texts(self, example: Any) -> Iterable[str]:
        """Return the texts of an example, to train a tokenizer on."""

    @abstractmethod
    def encode(self, example: Any) -> Encoded:
        """Return an example as lists of numbers, including `tokens`.

        Raises:
            ValueError: the example cannot be encoded or does not fit the context.
        """

    @abstractmethod
    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """Return a batch of examples."""

    def settings(self) -> object:
        """Return settings that change the rows, such as the template, as plain data."""
        return None

    def content(self, example: Any) -> object:
        """Return the content of an example as plain data, without `where`."""
        return example[1:]

    def group(self, example: Any) -> Any:
        """Return the group of an example, such as its label; every group is split in the same proportions."""
        return None

    def select(self, parts: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return the examples to use, before they are split."""
        return parts

    def unread(self, values: Mapping[str, Any]) -> Iterable[str]:
        """Return the names of fields with a value that `parse` does not read, for a warning."""
        return ()

    # Preparing

    def prepare_data(self) -> None:
        """Read the files, once."""
        if not self.raw:
            self.raw = self.read()

    def read(self) -> dict[str, list[Any]]:
        """Return the examples of each part."""
        malformed = Malformed(self.malformed)
        given = {
            part: list(self._read_files(path, malformed))
            for part, path in self.files.items()
            if path is not None
        }
        self.skipped = malformed.close(self.kind, sum(map(len, given.values())))
        if self.unused:
            fields = ", ".join(f"{name} ({count:,} rows)" for name, count in self.unused.items())
            warnings.warn(f"{self.title}: fields that are not used: {fields}", stacklevel=2)
        parts = self._split(self.select(given))
        self._require_parts(parts)
        if held_out := given.keys() - {"train"}:
            self._warn_shared(parts, sorted(held_out))
        return parts

    def _read_files(self, path: Paths, malformed: Malformed) -> Iterator[Any]:
        for row in read_records(path, self.layout, malformed=malformed):
            try:
                yield self.parse(row)
            except ValueError as error:
                malformed.add(row.where, str(error))
            else:
                self.unused.update(self.unread(row.values))

    def _warn_shared(self, parts: Mapping[str, Sequence[Any]], held_out: Iterable[str]) -> None:
        """Warn if separate files have examples of the training part."""
        trained = {json.dumps(self.content(example)) for example in parts["train"]}
        for part in held_out:
            shared = sum(json.dumps(self.content(example)) in trained for example in parts[part])
            if shared:
                warnings.warn(
                    f"data.{part}_path: {shared:,} of its {len(parts[part]):,} {self.kind} are in the training part "
                    "too, so its metrics do not measure generalization; remove the key to hold out a share of "
                    "data.path, or give other files",
                    stacklevel=2,
                )

    def _split(self, given: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Draw the parts without files from the training examples, in the same proportions for every group."""
        fractions = {part: share for part, share in self.fractions.items() if part not in given}
        examples = given["train"]
        shares = {"train": 1 - sum(fractions.values()), **fractions}
        indices = split_examples(
            [self.group(each) for each in examples], shares, seed=self.split_seed
        )
        return given | {part: [examples[index] for index in own] for part, own in indices.items()}

    def _require_parts(self, parts: Mapping[str, Sequence[Any]]) -> None:
        for part in ("train", "validation"):
            if not parts[part]:
                raise DataError(
                    f"{self.title}: no {self.kind} are left for the {part} part; give more of them, or change "
                    "data.validation_fraction and data.test_fraction"
                )

    def setup(self, stage: str | None = None) -> None:
        """Train or extend the tokenizer and encode every part, once."""
        self.prepare_data()
        if self.encoded:
            return
        texts = (text for example in self.raw["train"] for text in self.texts(example))
        self.tokenizer = fit(self.spec, texts).with_special_tokens(self.special_tokens)
        malformed = Malformed(self.malformed)
        self.encoded = {part: self._encode_part(part, malformed) for part in self.raw}
        self.skipped += malformed.close(self.kind, sum(map(len, self.raw.values())))
        self._require_parts(self.raw)
        self._measure()
        self._hash()

    def _measure(self) -> None:
        rows = [len(row["tokens"]) for row in self.encoded["train"]]
        self.tokens_per_row = sum(rows) / len(rows)
        longest = max(self.model_rows("train"), key=lambda row: len(row["tokens"]))
        self.longest_row = self.collation.width([longest], self.context_length)
        texts = (text for example in self.raw["validation"] for text in self.texts(example))
        self.validation_bytes = sum(len(text.encode()) for text in texts)

    def _hash(self) -> None:
        contents = {part: list(map(self.content, own)) for part, own in self.raw.items()}
        settings = {
            "examples": data_fingerprint.digest(json.dumps(contents).encode()),
            "settings": self.settings(),
            "collation": [type(self.collation).__name__, vars(self.collation)],
            "tokenizer": data_fingerprint.of_tokenizer(self.spec),
            "special_tokens": list(self.special_tokens),
            "context_length": self.context_length,
            "seed": self.seed,
        }
        self.fingerprint = data_fingerprint.of_settings(settings)
        held_out = [contents.get(part, []) for part in self.fractions]
        self.corpus = data_fingerprint.digest(json.dumps(held_out).encode())[:24]
        units = {"settings": self.settings()}
        if self.averages_tokens:
            units["tokenizer"] = data_fingerprint.of_tokenizer(self.tokenizer)
        self.vocabulary = data_fingerprint.of_settings(units)

    def _encode_part(self, part: str, malformed: Malformed) -> list[Encoded]:
        """Return the rows of a part; examples that cannot be encoded are malformed and removed from `raw`."""
        fitting, encoded = [], []
        for example in self.raw[part]:
            try:
                encoded.append(self.encode(example))
                fitting.append(example)
            except ValueError as error:
                malformed.add(example.where, str(error))
        self.raw[part] = fitting
        return self.collation.arrange(encoded, self.context_length)

    def require_fit(self, what: str, *, prompt: int, tokens: int) -> None:
        """Raise a ValueError if an example of `tokens` tokens does not fit the context; the last is only a target."""
        if tokens - 1 > self.context_length:
            raise ValueError(
                f"{what} have {prompt} + {tokens - prompt} tokens, which do not fit "
                f"context_length={self.context_length}"
            )

    # Sizes and descriptions

    @property
    def title(self) -> str:
        """Name of the files in messages."""
        return title(self.files["train"] or "")

    @property
    def is_ready(self) -> bool:
        """Whether all files are on this machine."""
        return all(is_here(path) for path in self.files.values() if path is not None)

    def model_rows(self, part: str) -> Iterable[Encoded]:
        """Return the rows of a part that a model reads, one or several per example."""
        return self.encoded[part]

    def training_sampler(self, **order: int) -> Sampler:
        """Return the sampler of the collation."""
        lengths = [len(row["tokens"]) for row in self.encoded["train"]]
        return self.collation.sampler(lengths, self.batch_size, **order)

    def describe(self) -> str:
        """Return a description of the data in one line."""
        numbers = " + ".join(f"{len(self.raw.get(p, [])):,}" for p in ("train", *self.fractions))
        line = f"{self.title}: {numbers} {self.kind} (training + validation + test)"
        skipped = [f"{self.skipped:,} malformed rows left out"] if self.skipped else []
        return ", ".join([line, *self.remarks(), *skipped])

    def remarks(self) -> list[str]:
        """Return additions to the description."""
        return []

    def dataset(self, part: str) -> Dataset | None:
        """Return the rows of a part."""
        rows = self.encoded.get(part)
        return Examples(rows, self.collate) if rows else None


@dataclass(eq=False)
class Examples(Dataset[Batch]):
    """A dataset of encoded rows in memory, gathered one batch at a time."""

    rows: Sequence[Encoded]
    collate: Callable[[Sequence[Encoded]], Batch]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: np.ndarray) -> Batch:
        """Gather the rows with these indices, (B); an index beyond the end gives a row whose targets are ignored."""
        first = self.rows[0]
        names = first.keys() & {"targets", "labels"}
        ignored = first | {name: [IGNORE_INDEX] * len(first[name]) for name in names}
        return self.collate(
            [self.rows[n] if n < len(self.rows) else ignored for n in numbers.tolist()]
        )
