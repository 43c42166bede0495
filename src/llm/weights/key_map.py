"""Maps between two ways of naming and storing the same parameters, in both directions.

"Ours" are the tensors of a model of this package, "theirs" those of the published files. Each family has one file with
its names, such as `gpt2.py` and `llama.py`. A rule defines which of their tensors form one of ours, and how; `{}` in a
name stands for the number of a layer. One error lists all tensors that are missing, unexpected or of a wrong shape.
"""

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from llm.checkpoints.lazy_tensor import LazyTensor
from llm.weights.packed_rows import PackedRows
from llm.weights.state_loading import TABLES, fill, has_no_head, raise_problems


@dataclass(frozen=True)
class Rule:
    """One tensor, stored in the same way under two names.

    Attributes:
        ours: our name.
        theirs: the names of the tensors that form ours.
    """

    ours: str
    theirs: tuple[str, ...]

    def at(self, layer: int) -> "Rule":
        """Return the rule for one layer."""
        names = tuple(name.replace("{}", str(layer)) for name in self.theirs)
        return replace(self, ours=self.ours.replace("{}", str(layer)), theirs=names)

    def join(self, theirs: list[Tensor]) -> Tensor:
        """Return our tensor, formed from theirs."""
        return theirs[0]

    def split(self, ours: Tensor) -> list[Tensor]:
        """Return their tensors, formed from ours."""
        return [ours]


@dataclass(frozen=True)
class Transposed(Rule):
    """A matrix that is (in, out) in their files, and (out, in) in our models."""

    def join(self, theirs: list[Tensor]) -> Tensor:
        """Return the transposed matrix."""
        return theirs[0].t()

    def split(self, ours: Tensor) -> list[Tensor]:
        """Return the transposed matrix."""
        return [ours.t().contiguous()]


@dataclass(frozen=True)
class QueryKeyValue(Rule):
    """Three projections of theirs, which one matrix of ours contains in stacked form.

    Attributes:
        queries_to_keys: number of query rows for each key row.
    """

    queries_to_keys: int = 1

    def join(self, theirs: list[Tensor]) -> Tensor:
        """Return the stacked rows of queries, keys and values."""
        return torch.cat(theirs)

    def split(self, ours: Tensor) -> list[Tensor]:
        """Return the rows of queries, keys and values as separate matrices."""
        keys = ours.shape[0] // (self.queries_to_keys + 2)
        rows = (self.queries_to_keys * keys, keys, keys)
        return [part.contiguous() for part in ours.split(rows)]


@dataclass(frozen=True)
class Concatenated(Rule):
    """Several matrices of theirs, whose rows one matrix of ours contains.

    Attributes:
        rows: number of rows of each.
    """

    rows: tuple[int, ...] = ()

    def join(self, theirs: list[Tensor]) -> Tensor:
        """Return the rows of all, one matrix after the other.

        Raises:
            RuntimeError: a matrix has another number of rows.
        """
        if tuple(len(part) for part in theirs) != self.rows:
            raise RuntimeError("other numbers of rows")
        return torch.cat(theirs)

    def split(self, ours: Tensor) -> list[Tensor]:
        """Return the rows of each as separate matrices."""
        return [part.contiguous() for part in ours.split(self.rows)]


@dataclass(frozen=True)
class KeyMap:
    """All the rules of one format.

    Attributes:
        rules: how their tensors form ours.
        packed: tensors of theirs that contain several, whose parts the rules name.
        shared: their names that may be absent, and the tensors that replace them.
        ignored: their names that are not parameters.
        left_out: beginnings of the names of layers that ours does not have, and that a language model does not need.
        prefix: prefix of their names, absent from some files.
        renamed: endings of names in older files, and the endings that replace them.
    """

    rules: tuple[Rule, ...]
    shared: Mapping[str, str]
    packed: tuple[PackedRows, ...] = ()
    ignored: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    prefix: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)

    def load(self, theirs: Mapping[str, LazyTensor], model: nn.Module) -> None:
        """Fill a model of ours, with or without its head, in place.

        Raises:
            ConfigError: lists all tensors that are missing, unexpected or of a wrong shape, before any is read.
        """
        state = self._by_names_of_rules(theirs)
        rules = _for_layers(self.rules, _layers((n for r in self.rules for n in r.theirs), state))
        ours: dict[str, LazyTensor] = {}
        problems: dict[str, str] = {}
        for rule in rules:
            if rule.ours.startswith("head.") and has_no_head(model):
                continue
            if missing := [name for name in rule.theirs if name not in state]:
                problems[rule.ours] = f"missing: {_listed(missing)}"
                continue
            try:
                ours[rule.ours] = _joined(rule, [state[name] for name in rule.theirs])
            except ValueError as error:
                problems[rule.ours] = str(error)
        known = {name for rule in rules for name in rule.theirs}
        problems |= {name: f"unexpected: {name}" for name in state if name not in known}
        fill(model, ours, problems=problems, grow=TABLES)

    def fits(self, model: nn.Module) -> bool:
        """Return whether there are rules for exactly the tensors of a model, which may lack biases."""
        names = model.state_dict().keys()
        rules = _for_layers(self.rules, _layers((rule.ours for rule in self.rules), names))
        expected = {rule.ours for rule in rules}
        return names <= expected and all(name.endswith("bias") for name in expected - names)

    def to_theirs(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return their tensors, by their names.

        Raises:
            ConfigError: lists all tensors that are missing or unexpected.
        """
        rules = _for_layers(self.rules, _layers((r.ours for r in self.rules), ours))
        expected = [rule.ours for rule in rules]
        missing = [f"missing: {name}" for name in expected if name not in ours]
        raise_problems(missing + [f"unexpected: {name}" for name in ours if name not in expected])
        pairs = (zip(rule.theirs, rule.split(ours[rule.ours]), strict=True) for rule in rules)
        theirs = {name: tensor for pair in pairs for name, tensor in pair}
        for packed in self.packed:
            theirs[packed.name] = packed.join([theirs.pop(part) for part in packed.parts])
        return theirs

    def _by_names_of_rules(self, theirs: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Return their tensors by the names in the rules; unknown ones keep their names."""
        state = {self._full_name(name): stored for name, stored in theirs.items()}
        for name in [*state]:
            if _matches(self.ignored, name) or name.startswith(self.left_out):
                del state[name]
        for name, stand_in in self.shared.items():
            if name not in state and stand_in in state:
                state[name] = state[stand_in]
        for packed in self.packed:
            if (stored := state.pop(packed.name, None)) is not None:
                state |= packed.unpack(stored)
        return state

    def _full_name(self, name: str) -> str:
        for old, new in self.renamed.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        return self.prefix + name if _matches(self._known, self.prefix + name) else name

    @cached_property
    def _known(self) -> set[str]:
        """The names in their files."""
        named = {name for rule in self.rules for name in rule.theirs}
        return named | {*self.ignored} | {packed.name for packed in self.packed}


def _joined(rule: Rule, theirs: list[LazyTensor]) -> LazyTensor:
    """Return our tensor, unread; joining on the device `meta` gives its shape.

    Raises:
        ValueError: they cannot be joined.
    """
    try:
        shape = rule.join([torch.empty(stored.shape, device="meta") for stored in theirs]).shape
    except RuntimeError:
        shapes = ", ".join(dict.fromkeys(f"{stored.name} {stored.shape}" for stored in theirs))
        raise ValueError(f"wrong shape: {shapes} cannot form {rule.ours}") from None
    names = ", ".join(dict.fromkeys(stored.name for stored in theirs))
    return LazyTensor(names, tuple(shape), lambda: rule.join([stored.read() for stored in theirs]))


def _listed(names: list[str]) -> str:
    """Return the first three names, and the number of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _matches(patterns: Container[str], name: str) -> bool:
    return name in patterns or _layer(patterns, name) is not None


def _layer(patterns: Container[str], name: str) -> int | None:
    """Return the number of the layer in a name, for which one of the patterns has `{}`."""
    # Looked up and not matched one by one: hundreds of experts have as many patterns, in as many layers.
    for number in re.finditer(r"\d+", name):
        if f"{name[: number.start()]}{{}}{name[number.end() :]}" in patterns:
            return int(number[0])
    return None


def _layers(patterns: Iterable[str], names: Iterable[str]) -> list[int]:
    """Return the numbers of the layers in the names."""
    known = {*patterns}
    return sorted({layer for name in names if (layer := _layer(known, name)) is not None})


def _for_layers(rules: Iterable[Rule], layers: Iterable[int]) -> list[Rule]:
    return [rule.at(layer) for rule in rules for layer in (layers if "{}" in rule.ours else [0])]
