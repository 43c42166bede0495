"""The data module of texts with labels, for classification."""

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from llm.data.corpora.windows import Batch
from llm.data.errors import DataError
from llm.data.examples.base import ExamplesDataModule
from llm.data.examples.collation import Encoded, pad_with_mask
from llm.data.record_reader import Record, title
from llm.data.split import indices_by_group

Balance = Literal["none", "undersample", "weights"]
Repeats = Literal["text", "letters"]


class Example(NamedTuple):
    """A text and its class.

    Attributes:
        where: the file and line.
        text: the text.
        label: the name of its class.
    """

    where: str
    text: str
    label: str


class LabelledDataModule(ExamplesDataModule):
    """A data module of texts with classes.

    A batch has `tokens` (B, T) int64, padded on the right; `attention_mask` (B, T) bool, true for tokens that are
    not padding; `labels` (B) int64; and `rows` (B) int64, the indices of the texts in `raw`. Repeated texts are
    removed before the split, so none is in two parts. Texts that are longer than the context are cut at the end.

    Args:
        text: the column or key of the text.
        label: the column or key of the label: text, a number or a boolean.
        classes: names of the classes, in order; by default the labels found, sorted.
        balance: handling of classes of unequal size in the training part: `none`; `undersample` draws
            as many texts of each class as the smallest has; `weights` weights the loss by class.
        repeats: how texts are compared: `text` ignores case and white space; `letters` also ignores numbers and
            punctuation, which finds form letters.
        validation_fraction: share of each class for validation.
        test_fraction: share of each class for the test.
        shared: the other arguments of `ExamplesDataModule`.

    Attributes:
        classes: names of the classes; a label in a batch is an index in this list. Available after `prepare_data`.

    Raises:
        DataError: there are fewer than two classes.
    """

    kind = "texts"
    averages_tokens = False

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
        self.key = {"text": normalize_words, "letters": keep_letters}[repeats]
        self.classes: list[str] = [class_name(name) for name in classes or ()]
        if classes is not None and len(set(self.classes)) < max(2, len(self.classes)):
            raise ValueError(
                f"classes={list(classes)} is too short or repeats a class; give two or more, each once, or null"
            )
        self.repeated = 0
        self.lengths: list[int] = []

    # Reading

    def read(self) -> dict[str, list[Example]]:
        """Return the examples of each part."""
        parts = super().read()
        labels = {example.label for example in chain(*parts.values())}
        if not self.classes:
            self._warn_case(labels)
        self.classes = self.classes or sort_names(labels)
        if len(self.classes) < 2:
            raise DataError(
                f"{self.title}: has only the class {', '.join(labels)}; give texts of two classes or more"
            )
        if self.balance == "undersample":
            parts["train"] = undersample(parts["train"], self.seed)
        return parts

    def _warn_case(self, labels: Iterable[str]) -> None:
        """Warn about labels that differ only in case."""
        names = sorted(labels)
        alike = indices_by_group([name.casefold() for name in names]).values()
        groups = [" and ".join(names[index] for index in own) for own in alike if len(own) > 1]
        if groups:
            warnings.warn(
                f"{self.title}: labels that differ only in case are different classes: {list_names(groups)}; write "
                "them the same if they are meant to be one class",
                stacklevel=2,
            )

    def group(self, example: Example) -> str:
        """Return the class of an example."""
        return example.label

    def parse(self, row: Record) -> Example:
        """Return the text and the label of a row.

        Raises:
            ValueError: one is missing or of a wrong type, or the label is not one of `classes`.
        """
        for name, parameter in ((self.text, "text"), (self.label, "label")):
            if row.values.get(name) is None:
                there = ", ".join(row.values) or "none"
                raise ValueError(
                    f"nothing under {name!r} (data.{parameter}); there are {there}; set data.text and data.label to "
                    "two of them, or name the columns of a CSV file without a header with 'data.columns=[…]'"
                    f"{', or set data.delimiter' * (len(row.values) == 1)}"
                )
        text, label = row.values[self.text], class_name(row.values[self.label])
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"no text under {self.text!r}")
        if self.classes and label not in self.classes:
            raise ValueError(f"{label!r} is not one of the classes {', '.join(self.classes)}")
        return Example(row.where, text, label)

    def select(self, parts: dict[str, list[Example]]) -> dict[str, list[Example]]:
        """Return each text once; a text in the files of several parts stays in the test or the validation part."""
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
        """Raise an error if the first row seems to be a header, although the columns are named."""
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
            f"leaves nothing for the {part} part; give other files, or leave {keys} out to hold out a share of "
            "data.path"
        )

    def texts(self, example: Example) -> Iterable[str]:
        """Return the text of an example."""
        return [example.text]

    def settings(self) -> object:
        """Return the classes, and whether they are weighted."""
        return {"classes": self.classes, "weights": self.balance == "weights"}

    # Encoding

    def encode(self, example: Example) -> Encoded:
        """Return the tokens, cut to the context, and the label.

        Raises:
            ValueError: the tokenizer cannot encode the text.
        """
        tokens = self.tokenizer.encode(example.text)
        if not tokens:
            raise ValueError("the tokenizer returns no token for this text; use another tokenizer")
        before, after = self.tokenizer.ends
        self.lengths.append(len(before) + len(tokens) + len(after))
        return {
            "tokens": self.tokenizer.with_ends(tokens, self.context_length),
            "labels": [self.classes.index(example.label)],
        }

    def setup(self, stage: str | None = None) -> None:
        """Train or extend the tokenizer and encode every part; each row has its index in `raw`."""
        if not self.encoded:
            super().setup(stage)
            self._warn_cut()
        for rows in self.encoded.values():
            for index, row in enumerate(rows):
                row["rows"] = [index]

    @property
    def cut(self) -> int:
        """Number of texts that are longer than the context."""
        return sum(length > self.context_length for length in self.lengths)

    def _warn_cut(self) -> None:
        """Warn if most texts are cut."""
        if 2 * self.cut <= len(self.lengths):
            return
        half, most = np.quantile(self.lengths, (0.5, 0.95), method="higher").tolist()
        warnings.warn(
            f"data.context_length: {self.cut:,} of {len(self.lengths):,} texts have more than "
            f"{self.context_length:,} tokens and are cut (the median is {half:,}, the 95th percentile {most:,}); "
            f"set size.context_length={most}, or use a tokenizer with longer tokens",
            stacklevel=2,
        )

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """Return `tokens` and `attention_mask` (B, T), `labels` and `rows` (B)."""
        width = self.collation.width(examples, self.context_length)
        return {
            **pad_with_mask([{"tokens": example["tokens"]} for example in examples], width),
            **{name: torch.tensor([e[name][0] for e in examples]) for name in ("labels", "rows")},
        }

    # Sizes and descriptions

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def class_weights(self) -> list[float] | None:
        """Weight of each class in the loss: the size of the largest class divided by its own; None without weights."""
        if self.balance != "weights":
            return None
        sizes = Counter(example.label for example in self.raw["train"])
        return [max(sizes.values()) / max(sizes[name], 1) for name in self.classes]

    def remarks(self) -> list[str]:
        """Return the shares of the classes in the training part, and the counts of removed and cut texts."""
        sizes = Counter(example.label for example in self.raw["train"])
        shares = [f"{name} {sizes[name] / sizes.total():.1%}" for name in self.classes]
        remarks = [f"training {list_names(shares)}"]
        if self.repeated:
            remarks.append(f"{self.repeated:,} repeated texts left out")
        if self.cut:
            remarks.append(f"{self.cut:,} texts cut to {self.context_length:,} tokens")
        return remarks


def class_name(label: Any) -> str:
    """Return the name of a class; a number or a boolean is written as in JSON.

    Raises:
        ValueError: the label is empty, a list or an object.
    """
    name = label.strip() if isinstance(label, str) else json.dumps(label)
    if not name or isinstance(label, list | dict):
        raise ValueError(f"{name or 'empty text'} is not a label; use text, a number or a boolean")
    return name


def sort_names(names: Iterable[str]) -> list[str]:
    """Return the names sorted: by value if all are numbers, otherwise as text."""
    names = sorted(names)
    try:
        are_finite = all(math.isfinite(float(name)) for name in names)
    except ValueError:
        return names
    return sorted(names, key=float) if are_finite else names


def normalize_words(text: str) -> str:
    """Return the text in one case, with single spaces."""
    return " ".join(text.casefold().split())


def keep_letters(text: str) -> str:
    """Return the letters of a text in one case, or its words if it has no letters."""
    return re.sub(r"[\W\d_]+", "", text.casefold()) or normalize_words(text)


def undersample(examples: Sequence[Example], seed: int) -> list[Example]:
    """Return as many examples of each class as the smallest has, drawn at random, in their original order."""
    random = np.random.default_rng(seed)
    classes = indices_by_group([example.label for example in examples]).values()
    size = min(map(len, classes))
    chosen = [random.choice(own, size, replace=False) for own in classes]
    return [examples[index] for index in sorted(np.concatenate(chosen).tolist())]


def list_names(names: Sequence[str], most: int = 8) -> str:
    """Return the first few names and the number of the others."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
