"""Texts with labels, for classification: any CSV, TSV, JSON or JSON lines file."""

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from llm.data.base import Batch
from llm.data.errors import DataError
from llm.data.examples.base import ExamplesDataModule
from llm.data.examples.collation import Encoded, attended
from llm.data.malformed import Malformed
from llm.data.record_reader import Paths, Record, read_records, title

Balance = Literal["none", "undersample", "weights"]
Repeats = Literal["text", "letters"]


class Example(NamedTuple):
    """A text and its class.

    Attributes:
        where: The file and the line it stands on.
        text: The text.
        label: The name of its class.
    """

    where: str
    text: str
    label: str


class LabelledDataModule(ExamplesDataModule):
    """Batches of texts and their classes, of which there may be any number.

    A batch has `tokens` (B, T) int64, filled up on the right to its longest text; `attention_mask` (B, T),
    true where a token is real; `labels` (B) int64; and `rows` (B) int64, the places of the texts in
    `raw`. A text that occurs again is left out, before the split: none is in two parts. Texts longer
    than the context keep their beginning.

    Args:
        text: The column or key of the text.
        label: The column or key of the label: text, a number or a truth value.
        classes: Names of the classes, in their order; by default those that are found, sorted.
        balance: What is done about classes of unequal size in the training part: `none`; `undersample`
            draws as many of each class as the smallest has; `weights` leaves the texts and weights the
            loss by class. The other parts stay as they are.
        repeats: When two texts are one: by their `text` (case and white space aside), or by their
            `letters`, numbers and punctuation aside too, as of form letters.
        validation_fraction: Share of each class to validate with.
        test_fraction: Share of each class to test with.
        shared: The other arguments of `ExamplesDataModule`; a longer text than `context_length` is cut.

    Attributes:
        classes: Names of the classes; a label is a place among them. From `prepare_data` on.

    Raises:
        ValueError: A parameter is out of range.
        DataError: A file or, unless they are skipped, a row cannot be used; a part is empty; or there
            are fewer than two classes.
    """

    kind = "texts"

    def __init__(
        self,
        *,
        text: str = "text",
        label: str = "label",
        classes: Sequence[str | int | float] | None = None,
        balance: Balance = "none",
        repeats: Repeats = "text",
        validation_fraction: float = 0.1,
        test_fraction: float = 0.2,
        **shared: Any,
    ) -> None:
        super().__init__(
            validation_fraction=validation_fraction, test_fraction=test_fraction, **shared
        )
        self.text, self.label = text, label
        self.balance: Balance = balance
        self.key = {"text": words_of, "letters": letters_of}[repeats]
        self.classes: list[str] = [class_name(name) for name in classes or ()]
        if classes is not None and len(set(self.classes)) < max(2, len(self.classes)):
            raise ValueError(f"classes={list(classes)}: give two or more, each once, or null")
        self.repeated = 0
        self.lengths: list[int] = []

    # Reading

    def read(self) -> dict[str, list[Example]]:
        """The examples of each part: without repeats, split, and the training part balanced."""
        parts = super().read()
        labels = {example.label for example in chain(*parts.values())}
        if not self.classes:
            self._tell_case(labels)
        self.classes = self.classes or in_order(labels)
        if len(self.classes) < 2:
            raise DataError(
                f"{self.title}: a classifier needs two classes, and there is {', '.join(labels)}"
            )
        if self.balance == "undersample":
            parts["train"] = undersampled(parts["train"], self.seed)
        return parts

    def _tell_case(self, labels: Iterable[str]) -> None:
        """Name the labels that differ only in case, which are classes of their own."""
        alike: dict[str, list[str]] = {}
        for label in sorted(labels):
            alike.setdefault(label.casefold(), []).append(label)
        groups = [" and ".join(names) for names in alike.values() if len(names) > 1]
        if groups:
            warnings.warn(
                f"{self.title}: labels that differ only in case are different classes: {listed(groups)}; write "
                "them alike if they are meant to be one class",
                stacklevel=2,
            )

    def read_file(self, path: Paths, malformed: Malformed) -> Iterator[Example]:
        """The texts of some files and their labels."""
        for row in read_records(path, self.layout, malformed=malformed):
            try:
                yield self._example(row)
            except ValueError as error:
                malformed.add(row.where, str(error))

    def group(self, example: Example) -> str:
        """Its class: all parts have the same shares of each."""
        return example.label

    def _example(self, row: Record) -> Example:
        for name, parameter in ((self.text, "text"), (self.label, "label")):
            if row.values.get(name) is None:
                there = ", ".join(row.values) or "none"
                raise ValueError(
                    f"nothing under {name!r} (data.{parameter}); there are {there}: data.text and data.label name "
                    "two of them, 'data.columns=[…]' the columns of a CSV file without a header"
                    f"{', data.delimiter what separates columns' * (len(row.values) == 1)}"
                )
        text, label = row.values[self.text], class_name(row.values[self.label])
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"no text under {self.text!r}")
        if self.classes and label not in self.classes:
            raise ValueError(f"{label!r} is not one of the classes {', '.join(self.classes)}")
        return Example(row.where, text, label)

    def select(self, parts: dict[str, list[Example]]) -> dict[str, list[Example]]:
        """Each text once; where files of their own share some, what is held out keeps them."""
        for examples in parts.values():
            self._refuse_header(examples)
        seen: set[str] = set()

        def is_new(example: Example) -> bool:
            before = len(seen)
            seen.add(self.key(example.text))
            return len(seen) > before

        kept = {part: list(filter(is_new, parts[part])) for part in reversed(parts)}
        self.repeated = sum(map(len, parts.values())) - len(seen)
        for part, examples in parts.items():
            if examples and not kept[part]:
                self._refuse_shared(part, len(examples))
        return kept

    def _refuse_header(self, examples: Sequence[Example]) -> None:
        """Refuse a first row that would become a class of its own where the columns have been named."""
        if self.layout.header is None or self.classes or not examples:
            return
        first = examples[0].label
        if sum(example.label == first for example in examples) == 1:
            raise DataError(
                f"{examples[0].where}: {first!r} is the label of this row alone, as in a header; leave "
                "data.columns out and let data.text and data.label name two of the header's columns, or list "
                "the classes in data.classes"
            )

    def _refuse_shared(self, part: str, count: int) -> None:
        others = [other for other in self.files if other != part and self.files[other] is not None]
        keys = " and ".join(f"data.{other}_path" for other in others if other != "train")
        raise DataError(
            f"{title(self.files[part] or '')}: all {count:,} texts are in the files of {keys} as well, which "
            f"leaves nothing for the {part} part; give other files, or leave {keys} out to hold back a share of "
            "data.path"
        )

    def texts(self, example: Example) -> Iterable[str]:
        """The text."""
        return [example.text]

    def settings(self) -> object:
        """The classes, and how they are weighted."""
        return {"classes": self.classes, "weights": self.balance == "weights"}

    def counted_in(self) -> dict[str, object]:
        """A text counts as one, however many tokens it has."""
        return {}

    # Encoding

    def encode(self, example: Example) -> Encoded:
        """The tokens, cut to the context, and the label.

        Raises:
            ValueError: The tokenizer cannot encode the text.
        """
        tokens = self.tokenizer.encode(example.text)
        if not tokens:
            raise ValueError("the tokenizer makes no token of this text")
        before, after = self.tokenizer.ends
        self.lengths.append(len(before) + len(tokens) + len(after))
        return {
            "tokens": self.tokenizer.with_ends(tokens, self.context_length),
            "labels": [self.classes.index(example.label)],
        }

    def setup(self, stage: str | None = None) -> None:
        """As for all examples; each row remembers its place in `raw`."""
        if not self.encoded:
            super().setup(stage)
            self._tell_cut()
        for rows in self.encoded.values():
            for place, row in enumerate(rows):
                row["rows"] = [place]

    @property
    def cut(self) -> int:
        """How many texts have more tokens than are read."""
        return sum(length > self.context_length for length in self.lengths)

    def _tell_cut(self) -> None:
        """Say how long the texts are where most of them are cut."""
        if 2 * self.cut <= len(self.lengths):
            return
        half, most = np.quantile(self.lengths, (0.5, 0.95), method="higher").tolist()
        warnings.warn(
            f"data.context_length: {self.cut:,} of {len(self.lengths):,} texts have more than "
            f"{self.context_length:,} tokens and only their beginning is read (half of all have {half:,} or more, "
            f"95 % at most {most:,}); size.context_length={most} reads these whole, a tokenizer with longer tokens "
            "makes them shorter",
            stacklevel=2,
        )

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """`tokens` and `attention_mask` (B, T), `labels` and `rows` (B)."""
        width = self.collation.width(examples, self.context_length)
        return {
            **attended([{"tokens": example["tokens"]} for example in examples], width),
            **{name: torch.tensor([e[name][0] for e in examples]) for name in ("labels", "rows")},
        }

    # What there is

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def class_weights(self) -> list[float] | None:
        """What a text of each class counts in the loss, so that all classes count alike; None: all texts do.

        The largest class counts 1 and the others as many times more as they are smaller.
        """
        if self.balance != "weights":
            return None
        sizes = Counter(example.label for example in self.raw["train"])
        return [max(sizes.values()) / max(sizes[name], 1) for name in self.classes]

    def remarks(self) -> list[str]:
        """The classes of the training part, and what was left out or cut."""
        sizes = Counter(example.label for example in self.raw["train"])
        shares = [f"{name} {sizes[name] / sizes.total():.1%}" for name in self.classes]
        notes = {
            "repeated texts left out": self.repeated,
            f"texts cut to {self.context_length:,} tokens": self.cut,
        }
        counted = [f"{count:,} {what}" for what, count in notes.items() if count]
        return [f"training {listed(shares)}", *counted]


def class_name(label: Any) -> str:
    """The name of a class: of a number or a truth value as JSON writes it.

    Raises:
        ValueError: There is no name, or the label is a list or an object.
    """
    name = label.strip() if isinstance(label, str) else json.dumps(label)
    if not name or isinstance(label, list | dict):
        raise ValueError(f"{name or 'an empty text'} is not a label")
    return name


def in_order(names: Iterable[str]) -> list[str]:
    """The names sorted: as numbers where all of them are, equal ones and all others as text."""
    names = sorted(names)
    try:
        are_finite = all(math.isfinite(float(name)) for name in names)
    except ValueError:
        return names
    return sorted(names, key=float) if are_finite else names


def words_of(text: str) -> str:
    """The text without regard to case and white space."""
    return " ".join(text.casefold().split())


def letters_of(text: str) -> str:
    """The letters of a text, without regard to case; a text without any is compared by its words."""
    return re.sub(r"[\W\d_]+", "", text.casefold()) or words_of(text)


def undersampled(examples: Sequence[Example], seed: int) -> list[Example]:
    """As many examples of each class as the smallest has, drawn at random, in their order."""
    random = np.random.default_rng(seed)
    places: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        places.setdefault(example.label, []).append(place)
    size = min(map(len, places.values()))
    chosen = [random.choice(own, size, replace=False) for own in places.values()]
    return [examples[place] for place in sorted(np.concatenate(chosen).tolist())]


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
