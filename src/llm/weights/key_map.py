"""A map between two ways of naming and storing the same parameters: reversible and strict.

Each rule says which of their tensors make one of ours, and how; `{}` in a name stands for a layer's
number. Applied either way, a map uses every tensor and leaves no gap, or names all that are missing,
left over or wrongly shaped in one error.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rule:
    """One tensor, stored alike under two names.

    Attributes:
        ours: our name.
        theirs: their name, or the names of the several tensors that make ours.
    """

    ours: str
    theirs: tuple[str, ...]

    def at(self, layer: int) -> "Rule":
        """The same rule for one layer."""
        names = tuple(name.replace("{}", str(layer)) for name in self.theirs)
        return replace(self, ours=self.ours.replace("{}", str(layer)), theirs=names)

    def join(self, theirs: list[Tensor]) -> Tensor:
        """Our tensor from theirs."""
        return theirs[0]

    def split(self, ours: Tensor) -> list[Tensor]:
        """Their tensors from ours."""
        return [ours]


@dataclass(frozen=True)
class Transposed(Rule):
    """A matrix that they store as (in, out), we as (out, in)."""

    def join(self, theirs: list[Tensor]) -> Tensor:
        """Turns the matrix."""
        return theirs[0].t().contiguous()

    def split(self, ours: Tensor) -> list[Tensor]:
        """Turns it back."""
        return [ours.t().contiguous()]


@dataclass(frozen=True)
class QueryKeyValue(Rule):
    """Three projections of theirs, one above the other in ours.

    Attributes:
        queries_to_keys: how many rows of queries there are for a row of keys.
    """

    queries_to_keys: int = 1

    def join(self, theirs: list[Tensor]) -> Tensor:
        """Stacks the rows of queries, keys and values."""
        return torch.cat(theirs)

    def split(self, ours: Tensor) -> list[Tensor]:
        """Takes the rows apart."""
        keys = ours.shape[0] // (self.queries_to_keys + 2)
        rows = (self.queries_to_keys * keys, keys, keys)
        return [part.contiguous() for part in ours.split(rows)]


@dataclass(frozen=True)
class KeyMap:
    """All the rules of one format.

    Attributes:
        rules: how their tensors make ours.
        shared: their names that may be absent, and which of their tensors stands in.
        ignored: their names that hold no parameters.
    """

    rules: tuple[Rule, ...]
    shared: Mapping[str, str]
    ignored: tuple[str, ...] = ()

    def to_ours(self, theirs: State, model: nn.Module | None = None) -> dict[str, Tensor]:
        """Our state from theirs.

        Args:
            theirs: their tensors by name.
            model: what the result is for: its names and shapes are checked too.

        Raises:
            ValueError: names all that is missing, left over or wrongly shaped.
        """
        state = {n: tensor for n, tensor in theirs.items() if not _matches(self.ignored, n)}
        for name, stand_in in self.shared.items():
            if name not in state and stand_in in state:
                state[name] = state[stand_in]
        rules = _for_layers(
            self.rules, _count_layers((n for r in self.rules for n in r.theirs), state)
        )
        problems = _names(state, [name for rule in rules for name in rule.theirs])
        result = {}
        for rule in rules:
            if all(name in state for name in rule.theirs):
                try:
                    result[rule.ours] = rule.join([state[name] for name in rule.theirs])
                except RuntimeError:
                    shapes = ", ".join(f"{n} {tuple(state[n].shape)}" for n in rule.theirs)
                    problems.append(f"wrong shape: {shapes} do not make one {rule.ours}")
        if model is not None:
            problems += _fit(result, model, made={rule.ours: rule.theirs for rule in rules})
        _refuse(problems)
        return result

    def to_theirs(self, ours: State) -> dict[str, Tensor]:
        """Their state from ours.

        Args:
            ours: our tensors by name.

        Raises:
            ValueError: names all that is missing or left over.
        """
        rules = _for_layers(self.rules, _count_layers((r.ours for r in self.rules), ours))
        _refuse(_names(ours, [rule.ours for rule in rules]))
        pairs = (zip(rule.theirs, rule.split(ours[rule.ours]), strict=True) for rule in rules)
        return {name: tensor for pair in pairs for name, tensor in pair}


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)"))


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(_pattern(pattern).fullmatch(name) for pattern in patterns)


def _count_layers(patterns: Iterable[str], state: State) -> int:
    layered = [_pattern(pattern) for pattern in patterns if "{}" in pattern]
    found = (pattern.fullmatch(name) for name in state for pattern in layered)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _for_layers(rules: Iterable[Rule], num_layers: int) -> list[Rule]:
    return [
        rule.at(layer) for rule in rules for layer in range(num_layers if "{}" in rule.ours else 1)
    ]


def _names(state: State, expected: list[str]) -> list[str]:
    missing = [f"missing: {name}" for name in expected if name not in state]
    return missing + [f"left over: {name}" for name in state if name not in set(expected)]


def _fit(result: State, model: nn.Module, made: Mapping[str, tuple[str, ...]]) -> list[str]:
    """What keeps `result` from being the state of `model`, in the words of those it is made of."""
    problems = []
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        source = ", ".join(made.get(name, (name,)))
        if name not in made:
            problems.append(f"missing: what would make {name}")
        elif name in result and result[name].shape != parameter.shape:
            has, needs = tuple(result[name].shape), tuple(parameter.shape)
            problems.append(f"wrong shape: {source} makes {has}, {name} is {needs}")
        elif name in result and not _same(result, first.setdefault(id(parameter), name), name):
            problems.append(f"untied: {source} differs from what the model shares it with")
    extra = made.keys() - dict(model.named_parameters(remove_duplicate=False)).keys()
    return problems + [f"left over: {', '.join(made[name])}" for name in sorted(extra)]


def _same(state: State, one: str, other: str) -> bool:
    return one == other or torch.equal(state[one], state[other])


def _refuse(problems: list[str]) -> None:
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(f"the weights do not fit, {len(problems)} problems:\n  {lines}")
