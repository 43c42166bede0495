"""Examples of any kind for finetuning: read from files, split and encoded in memory."""

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
    """Examples held in memory; a batch is as long as its longest row.

    A subclass says how an example is read from files (`read_file`), what of it is text (`texts`), and
    how it is encoded (`encode`) and joined with others to a batch (`collate`). Its constructor lists what it
    adds and passes the rest on as `**shared`.

    Args:
        path: A JSON, JSON lines, CSV or TSV file, or several, or one to download.
        tokenizer: A tokenizer, or a function that fits one to an iterable of training texts.
        context_length: The most tokens a row may have.
        collation: How examples become rows, and rows batches.
        batch_size: B, examples in a batch; in a parallel run the devices share them.
        columns: As for Layout, like the three after it: our names of the fields of the files, or the names of the
            columns of a file without a header.
        delimiter: The character between the columns.
        encoding: The encoding of the files.
        quoting: Whether quotes enclose a field.
        malformed: Whether rows of a file that cannot be used `stop` the training or are left out (`skip`).
        validation_fraction: Share of the examples to validate with.
        test_fraction: Share of the examples to test with.
        validation_path: A file of its own for validation; nothing is taken from `path` then.
        test_path: The same for the test.
        seed: Decides the order.
        workers: Processes that gather batches.
        split_seed: Decides what is held out; None takes `seed`.

    Attributes:
        kind: What the examples are called together.
        may_pack: Whether a row may hold several examples.
        raw: The examples of each part as they were read; from `setup` on, as all that follows.
        encoded: The rows of each part as they are trained on.
        skipped: How many malformed rows were left out.
        unused: Fields that are not read, each with the number of rows in which it holds something.

    Raises:
        ValueError: A parameter is out of range.
        DataError: A file or, unless they are skipped, a row of it cannot be used; or a part is empty
            (from `prepare_data` and `setup`).
    """

    kind: ClassVar[str] = "examples"
    may_pack: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give a subclass whose constructor passes `**shared` on a signature with the parameters in it.

        A config is checked against the signature, so that has to name every parameter.
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
                raise ValueError(f"{part}_fraction={fraction}: give 0 or more, and less than 1")
        if sum(self.fractions.values()) >= 1:
            raise ValueError(
                f"validation_fraction={validation_fraction} and test_fraction={test_fraction}: nothing is "
                "left to train on; give less than 1 together"
            )
        if isinstance(collation, Packing) and not self.may_pack:
            raise ValueError(
                f"collation: packing joins examples to a row, and each of these {self.kind} needs its own: "
                "choose padding or length_grouped"
            )
        self.raw: dict[str, list[Any]] = {}
        self.encoded: dict[str, list[Encoded]] = {}
        self.skipped = 0
        self.unused: Counter[str] = Counter()

    # What a subclass says

    @abstractmethod
    def read_file(self, path: Paths, malformed: Malformed) -> Iterable[Any]:
        """The examples of some files, each with its place there, `where`; rows that are none are noted."""

    @abstractmethod
    def texts(self, example: Any) -> Iterable[str]:
        """The texts of an example, to which a tokenizer may be fitted."""

    @abstractmethod
    def encode(self, example: Any) -> Encoded:
        """An example as lists of numbers, among them `tokens`.

        Raises:
            ValueError: It cannot be encoded, or does not fit the context.
        """

    @abstractmethod
    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """A batch of some examples; a pure function."""

    def settings(self) -> object:
        """Plain data, beside the examples themselves, on which the rows depend: the template, say."""
        return None

    def counted_in(self) -> dict[str, object]:
        """What a loss is a mean over, as plain data: the tokenizer's tokens, unless a subclass knows better."""
        return {"tokenizer": data_fingerprint.of_tokenizer(self.tokenizer)}

    def content(self, example: Any) -> object:
        """What an example is, as plain data, without its place in a file."""
        return example[1:]

    def group(self, example: Any) -> Any:
        """What the parts shall have equal shares of, such as a label."""
        return None

    def select(self, parts: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """What is used of the examples that were read, before they are split."""
        return parts

    @property
    def special_tokens(self) -> Sequence[str]:
        """Names of special tokens that the tokenizer has to have."""
        return ()

    def blank(self, example: Encoded) -> Encoded:
        """The example with nothing asked: what fills the shares of devices up to equal numbers."""
        ignored = {
            name: [IGNORE_INDEX] * len(example[name])
            for name in ("targets", "labels")
            if name in example
        }
        return {**example, **ignored}

    # Preparing

    def prepare_data(self) -> None:
        """Read the files, so that what is wrong in them is said before anything starts."""
        if not self.raw:
            self.raw = self.read()

    def read(self) -> dict[str, list[Any]]:
        """The examples of each part."""
        malformed = Malformed(self.malformed)
        given = {
            part: list(self.read_file(path, malformed))
            for part, path in self.files.items()
            if path is not None
        }
        self.skipped = malformed.close(self.kind, sum(map(len, given.values())))
        self._tell_unused()
        parts = self._split(self.select(given))
        for part in ("train", "validation"):
            self._require(part, parts[part])
        self._tell_shared(parts, [part for part in given if part != "train"])
        return parts

    def _tell_shared(self, parts: Mapping[str, Sequence[Any]], held_out: Iterable[str]) -> None:
        """Name the files of their own that hold examples of the training part."""
        trained = (
            {json.dumps(self.content(example)) for example in parts["train"]} if held_out else set()
        )
        for part in held_out:
            shared = sum(json.dumps(self.content(example)) in trained for example in parts[part])
            if shared:
                warnings.warn(
                    f"data.{part}_path: {shared:,} of its {len(parts[part]):,} {self.kind} are in the training part "
                    "too, so its figures do not show how well others are answered; leave it out to hold back a "
                    "share of data.path, or give other files",
                    stacklevel=2,
                )

    def note_unused(self, values: Mapping[str, Any], used: Collection[str]) -> None:
        """Count the fields of a row that hold something and are not among those that are used."""
        self.unused.update(unused_fields(values, used))

    def _tell_unused(self) -> None:
        """Name once the fields that nobody has read."""
        if self.unused:
            fields = [f"{name} ({count:,} rows)" for name, count in self.unused.items()]
            warnings.warn(
                f"{self.title}: fields that are not used: {', '.join(fields)}", stacklevel=2
            )

    def _split(self, given: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Take the parts that have no file of their own from the training part, group by group."""
        fractions = {part: share for part, share in self.fractions.items() if part not in given}
        examples = given["train"]
        shares = {"train": 1 - sum(fractions.values()), **fractions}
        places = split_examples(
            [self.group(each) for each in examples], shares, seed=self.split_seed
        )
        return given | {part: [examples[at] for at in own] for part, own in places.items()}

    def _require(self, part: str, examples: Sequence[Any]) -> None:
        if not examples:
            raise DataError(
                f"{self.title}: no {self.kind} are left for the {part} part: give more of them, or change "
                "data.validation_fraction and data.test_fraction"
            )

    def setup(self, stage: str | None = None) -> None:
        """Fit or extend the tokenizer and encode every part, once."""
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
        """The rows of a part; examples that cannot be encoded are malformed, and leave `raw`."""
        fitting, encoded = [], []
        for example in self.raw[part]:
            try:
                encoded.append(self.encode(example))
                fitting.append(example)
            except ValueError as error:
                malformed.add(example.where, str(error))
        self.raw[part] = fitting
        return self.collation.arrange(encoded, self.context_length)

    # What there is

    @property
    def title(self) -> str:
        """What a line calls the files."""
        return title(self.files["train"] or "")

    @property
    def tokens_per_row(self) -> float:
        """Training tokens in a row, on average."""
        rows = self.encoded["train"]
        return sum(len(row["tokens"]) for row in rows) / max(len(rows), 1)

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the texts of the validation part."""
        examples = self.raw["validation"]
        return sum(len(text.encode()) for each in examples for text in self.texts(each))

    @property
    def is_at_hand(self) -> bool:
        """Whether all files are on this machine."""
        return all(is_here(path) for path in self.files.values() if path is not None)

    @property
    def longest_row(self) -> int:
        """Tokens of the longest training row, filled up as its batch is."""
        longest = max(self.rows_of_a_model("train"), key=lambda row: len(row["tokens"]))
        return self.collation.width([longest], self.context_length)

    def rows_of_a_model(self, part: str) -> Iterable[Encoded]:
        """The rows of a part as a model reads them."""
        return self.encoded[part]

    def training_sampler(self, start: int, *, rank: int, world_size: int) -> Sampler:
        """The order of training, which is the collation's."""
        lengths = [len(row["tokens"]) for row in self.encoded["train"]]
        sampler = self.collation.sampler(lengths)
        return sampler(
            self.batch_size, seed=self.seed, start=start, rank=rank, world_size=world_size
        )

    def describe(self) -> str:
        """One line that says what the data are."""
        numbers = " + ".join(f"{len(self.raw.get(p, [])):,}" for p in ("train", *self.fractions))
        line = f"{self.title}: {numbers} {self.kind} (training + validation + test)"
        skipped = [f"{self.skipped:,} malformed rows left out"] if self.skipped else []
        return ", ".join([line, *self.remarks(), *skipped])

    def remarks(self) -> list[str]:
        """What else a line about the data says."""
        return []

    def dataset(self, part: str) -> Dataset | None:
        """The rows of a part."""
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
    """Rows in memory, gathered a whole batch at a time.

    Args:
        rows: The encoded examples.
        collate: Joins some to a batch.
        blank: Takes from an example what it asks, for numbers beyond the end.
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
        """Gather the rows of these numbers, (B)."""
        end = len(self.rows)
        return self.collate(
            [self.rows[n] if n < end else self.blank(self.rows[0]) for n in numbers.tolist()]
        )
