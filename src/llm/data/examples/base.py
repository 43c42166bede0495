"""The base class of data modules for finetuning: examples are read, split and encoded in memory."""

import json
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from inspect import Parameter, Signature, signature
from typing import Any, ClassVar, Literal

import numpy as np
from torch.utils.data import Dataset, Sampler

from llm.data import data_fingerprint
from llm.data.base import Batch, DataModule, at_least
from llm.data.errors import DataError
from llm.data.examples.collation import Encoded, Packing, Padding
from llm.data.examples.messages import unused_fields
from llm.data.malformed import Malformed
from llm.data.record_reader import Columns, Layout, Paths, is_here, title
from llm.data.split import split_examples
from llm.nn.ignore_index import IGNORE_INDEX
from llm.tokenizers.base import Tokenizer, fit

TokenizerSpec = Tokenizer | Callable[[Iterable[str]], Tokenizer]


class ExamplesDataModule(DataModule):
    """A data module of examples in memory; the length of a batch is that of its longest row.

    A subclass defines how examples are read (`read_file`), which texts they have (`texts`), and how they are
    encoded (`encode`) and collated (`collate`). Its constructor lists its own parameters and passes the others as
    `**shared`.

    Args:
        path: a JSON, JSON lines, CSV or TSV file, several files, or a download.
        tokenizer: a tokenizer, or a function that trains one on an iterable of training texts.
        context_length: maximum number of tokens in a row.
        collation: how examples become rows, and rows batches.
        batch_size: B, rows in a batch of all devices together.
        columns: as for Layout: a mapping from our names of fields to those in the files, or the column names of a
            file without a header.
        delimiter: as for Layout.
        encoding: as for Layout.
        quoting: as for Layout.
        malformed: whether rows that cannot be used raise an error (`stop`) or are left out (`skip`).
        validation_fraction: share of the examples for validation.
        test_fraction: share of the examples for the test.
        validation_path: separate files for validation; then `path` is not split for it.
        test_path: separate files for the test; then `path` is not split for it.
        seed: seed of the training order.
        workers: number of processes that gather batches.
        split_seed: seed of the split; None uses `seed`.

    Attributes:
        kind: name of the examples in messages.
        may_pack: whether a row may have several examples.
        raw: the examples of each part as read. Available after `setup`, as the others.
        encoded: the rows of each part.
        skipped: number of malformed rows left out.
        unused: for each field that is not read, the number of rows in which it is not blank.

    Raises:
        ValueError: a parameter is out of range.
        DataError: a file cannot be used, or a row and `malformed` is `stop`; or a part is empty
            (from `prepare_data` and `setup`).
    """

    kind: ClassVar[str] = "examples"
    may_pack: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Replace `**shared` in the signature of a subclass by the parameters of the parent class.

        A config is checked against the signature, so the signature must name every parameter.
        """
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__signature__ = joined_signature(cls)

    def __init__(
        self,
        *,
        path: Paths,
        tokenizer: TokenizerSpec,
        context_length: int,
        collation: Padding,
        batch_size: int = 8,
        columns: Columns = None,
        delimiter: str | None = None,
        encoding: str | None = None,
        quoting: bool = True,
        malformed: Literal["stop", "skip"] = "stop",
        validation_fraction: float = 0.05,
        test_fraction: float = 0.1,
        validation_path: Paths | None = None,
        test_path: Paths | None = None,
        seed: int = 0,
        workers: int = 0,
        split_seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, seed=seed, workers=workers)
        self.layout = Layout(columns, delimiter, encoding, quoting)
        self.split_seed = seed if split_seed is None else split_seed
        self.files = {"train": path, "validation": validation_path, "test": test_path}
        self.spec, self.collation = tokenizer, collation
        self.context_length = at_least("context_length", context_length, least=1)
        self.malformed: Literal["stop", "skip"] = Malformed(malformed).policy
        self.fractions = {"validation": validation_fraction, "test": test_fraction}
        for part, fraction in self.fractions.items():
            if not 0 <= fraction < 1:
                raise ValueError(
                    f"{part}_fraction={fraction} is out of range; use 0 or more and less than 1"
                )
        if sum(self.fractions.values()) >= 1:
            raise ValueError(
                f"validation_fraction={validation_fraction} and test_fraction={test_fraction} leave "
                "nothing to train on; use a sum less than 1"
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
    def read_file(self, path: Paths, malformed: Malformed) -> Iterable[Any]:
        """Yield the examples of files, each with its file and line, `where`; add other rows to `malformed`."""

    @abstractmethod
    def texts(self, example: Any) -> Iterable[str]:
        """Return the texts of an example, on which a tokenizer may be trained."""

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
        """Return settings that the rows depend on, such as the template, as plain data."""
        return None

    def counted_in(self) -> dict[str, object]:
        """Return the units that a loss is averaged over, as plain data: by default the tokenizer's tokens."""
        return {"tokenizer": data_fingerprint.of_tokenizer(self.tokenizer)}

    def content(self, example: Any) -> object:
        """Return the content of an example as plain data, without `where`."""
        return example[1:]

    def group(self, example: Any) -> Any:
        """Return the group of an example, such as its label; each part has the same share of every group."""
        return None

    def select(self, parts: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return the examples to use, before they are split."""
        return parts

    @property
    def special_tokens(self) -> Sequence[str]:
        """Names of special tokens that the tokenizer must have."""
        return ()

    def blank(self, example: Encoded) -> Encoded:
        """Return the example with all targets ignored; it pads the last batch to equal numbers for all devices."""
        ignored = {
            name: [IGNORE_INDEX] * len(example[name])
            for name in ("targets", "labels")
            if name in example
        }
        return {**example, **ignored}

    # Preparing

    def prepare_data(self) -> None:
        """Read the files, so that errors in them are raised before training starts."""
        if not self.raw:
            self.raw = self.read()

    def read(self) -> dict[str, list[Any]]:
        """Return the examples of each part."""
        malformed = Malformed(self.malformed)
        given = {
            part: list(self.read_file(path, malformed))
            for part, path in self.files.items()
            if path is not None
        }
        self.skipped = malformed.close(self.kind, sum(map(len, given.values())))
        self._warn_unused()
        parts = self._split(self.select(given))
        for part in ("train", "validation"):
            self._require(part, parts[part])
        self._warn_shared(parts, [part for part in given if part != "train"])
        return parts

    def _warn_shared(self, parts: Mapping[str, Sequence[Any]], held_out: Iterable[str]) -> None:
        """Warn if separate files have examples of the training part."""
        trained = (
            {json.dumps(self.content(example)) for example in parts["train"]} if held_out else set()
        )
        for part in held_out:
            shared = sum(json.dumps(self.content(example)) in trained for example in parts[part])
            if shared:
                warnings.warn(
                    f"data.{part}_path: {shared:,} of its {len(parts[part]):,} {self.kind} are in the training part "
                    "too, so its metrics do not measure generalization; remove the key to hold out a share of "
                    "data.path, or give other files",
                    stacklevel=2,
                )

    def note_unused(self, values: Mapping[str, Any], used: Collection[str]) -> None:
        """Count the fields of a row that are not blank and not used."""
        self.unused.update(unused_fields(values, used))

    def _warn_unused(self) -> None:
        """Warn about fields that are not read."""
        if self.unused:
            fields = [f"{name} ({count:,} rows)" for name, count in self.unused.items()]
            warnings.warn(
                f"{self.title}: fields that are not used: {', '.join(fields)}", stacklevel=2
            )

    def _split(self, given: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Split the parts without separate files off the training part, with equal shares of every group."""
        fractions = {part: share for part, share in self.fractions.items() if part not in given}
        examples = given["train"]
        shares = {"train": 1 - sum(fractions.values()), **fractions}
        indices = split_examples(
            [self.group(each) for each in examples], shares, seed=self.split_seed
        )
        return given | {part: [examples[index] for index in own] for part, own in indices.items()}

    def _require(self, part: str, examples: Sequence[Any]) -> None:
        if not examples:
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
        self.tokenizer = fit(self.spec, texts)
        if self.special_tokens:
            self.tokenizer = self.tokenizer.with_special_tokens(self.special_tokens)
        malformed = Malformed(self.malformed)
        self.encoded = {part: self._encode_part(part, malformed) for part in self.raw}
        self.skipped += malformed.close(self.kind, sum(map(len, self.raw.values())))
        for part in ("train", "validation"):
            self._require(part, self.raw[part])
        contents = {part: list(map(self.content, own)) for part, own in self.raw.items()}
        content = json.dumps(contents)
        settings = {
            "examples": data_fingerprint.digest(content.encode()),
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
        self.vocabulary = data_fingerprint.of_settings(
            {"settings": self.settings(), **self.counted_in()}
        )

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

    # Sizes and descriptions

    @property
    def title(self) -> str:
        """Name of the files in messages."""
        return title(self.files["train"] or "")

    @property
    def tokens_per_row(self) -> float:
        """Training tokens in a row, on average."""
        rows = self.encoded["train"]
        return sum(len(row["tokens"]) for row in rows) / max(len(rows), 1)

    @property
    def validation_bytes(self) -> int:
        """Size of the texts of the validation part, in UTF-8 bytes."""
        examples = self.raw["validation"]
        return sum(len(text.encode()) for each in examples for text in self.texts(each))

    @property
    def is_at_hand(self) -> bool:
        """Whether all files are on this machine."""
        return all(is_here(path) for path in self.files.values() if path is not None)

    @property
    def longest_row(self) -> int:
        """Tokens in the longest training row, with padding."""
        longest = max(self.rows_of_a_model("train"), key=lambda row: len(row["tokens"]))
        return self.collation.width([longest], self.context_length)

    def rows_of_a_model(self, part: str) -> Iterable[Encoded]:
        """Return the rows of a part, as a model reads them."""
        return self.encoded[part]

    def training_sampler(self, start: int, *, rank: int, world_size: int) -> Sampler:
        """Return the sampler of the collation, from batch `start` on."""
        lengths = [len(row["tokens"]) for row in self.encoded["train"]]
        sampler = self.collation.sampler(lengths)
        return sampler(
            self.batch_size, seed=self.seed, start=start, rank=rank, world_size=world_size
        )

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
        return Examples(rows, collate=self.collate, blank=self.blank) if rows else None


def joined_signature(cls: type) -> Signature:
    """Return the signature of a constructor, with its parent's parameters in place of `**shared`."""
    own = [*signature(vars(cls)["__init__"]).parameters.values()][1:]
    if not own or own[-1].kind is not Parameter.VAR_KEYWORD:
        return Signature(own)
    names = {parameter.name for parameter in own}
    parent = signature(cls.__base__).parameters.values()  # pyright: ignore[reportArgumentType]
    return Signature([*own[:-1], *(each for each in parent if each.name not in names)])


class Examples(Dataset[Batch]):
    """A dataset of rows in memory, gathered one batch at a time.

    Args:
        rows: the encoded examples.
        collate: collates rows to a batch.
        blank: returns an example with all targets ignored, for indices beyond the end.
    """

    def __init__(
        self,
        rows: Sequence[Encoded],
        *,
        collate: Callable[[Sequence[Encoded]], Batch],
        blank: Callable[[Encoded], Encoded],
    ) -> None:
        self.rows, self.collate, self.blank = rows, collate, blank

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: np.ndarray) -> Batch:
        """Gather the rows with these indices, (B)."""
        end = len(self.rows)
        return self.collate(
            [self.rows[n] if n < end else self.blank(self.rows[0]) for n in numbers.tolist()]
        )
