"""Comparison of a composed tree with the signatures that it names.

Each key must be a parameter, each value must have the annotated type, and no required parameter may be missing. A slot
is a parameter, or an element of its value, with the annotation that a value there must fit.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm.config import annotations
from llm.config.allowlist import locate
from llm.config.deferred import Deferred
from llm.config.errors import ConfigError, suggestion
from llm.config.plain import items_of, nested_items
from llm.config.requirements import FILLED_IN

MISSING = "???"
REMEDIES: dict[Any, str] = {
    int: "use a whole number such as 8",
    float: "use a number such as 0.1",
    bool: "use true or false",
    str: "use a text such as word",
    Sequence[str]: "use a list such as [word]",
}
LETTERS = {"k": 3, "m": 6, "b": 9, "g": 9, "t": 12}  # powers of ten

# The value of an interpolation that cannot be resolved. Its problem is already reported, so it fits every slot.
UNRESOLVED = object()


@dataclass(frozen=True)
class NodeReference:
    """A reference to a node at another full key. The node is checked there; here it must only fit its slot."""

    plain: Any
    key: str


def resolved(node: Any, key: str, problems: list[str]) -> Any:
    """Return a tree as plain data; an interpolation that cannot be resolved becomes a problem."""
    if isinstance(node, ListConfig):
        names: Any = range(len(node))
    elif isinstance(node, DictConfig):
        names = node.keys()
    else:
        return node
    plain = {
        name: resolved_value(node, name, f"{key}.{name}" if key else str(name), problems)
        for name in names
    }
    return plain if isinstance(node, DictConfig) else list(plain.values())


def dereference(plain: Any) -> Any:
    """Return the tree with every reference replaced by its node, as rules expect it."""
    if isinstance(plain, NodeReference):
        return dereference(plain.plain)
    if isinstance(plain, dict):
        return {name: dereference(value) for name, value in plain.items()}
    return [dereference(value) for value in plain] if isinstance(plain, list) else plain


def node_references(plain: Any) -> Iterator[tuple[str, str]]:
    """Yield the full key of each reference to a node, and the full key of the node."""
    items = nested_items(plain)
    return ((key, value.key) for _, key, value in items if isinstance(value, NodeReference))


def resolved_value(node: Any, name: Any, key: str, problems: list[str]) -> Any:
    """Return one value of a tree as plain data; see `resolved`."""
    if OmegaConf.is_missing(node, name):
        return MISSING
    try:
        value = node[name]
    except OmegaConfBaseException as error:
        text = node._get_node(name)._value()
        reason = str(error).splitlines()[0]
        problems.append(f"{key}: {text} cannot be resolved ({reason}); use a key that exists")
        return UNRESOLVED
    if OmegaConf.is_interpolation(node, name) and OmegaConf.is_config(value):
        return NodeReference(resolved(value, key, []), value._get_full_key(None))
    return None if value is None else resolved(value, key, problems)


@dataclass(frozen=True)
class Walk:
    """A walk through a plain tree that yields one line for each problem.

    Attributes:
        trust: packages that the user added to the allowlist.
        sections: the walked keys at the root; nodes elsewhere are checked at a reference to them.
    """

    trust: tuple[str, ...] = ()
    sections: frozenset[str] = frozenset()

    def value(
        self, value: Any, hint: Any, key: str, *, beneath_factory: bool = False
    ) -> Iterator[str]:
        """Compare a value with its slot."""
        if value is UNRESOLVED:
            return
        if isinstance(value, NodeReference) and value.key.split(".")[0] not in self.sections:
            value = value.plain
        if isinstance(value, NodeReference):
            yield from self.reference(value.plain, hint, key)
        elif isinstance(value, str) and value == MISSING:
            if key not in FILLED_IN:
                yield f"{key}: has no value; set it with {key}=…"
        elif isinstance(value, dict) and "_target_" in value:
            yield from self.node(value, hint, key, beneath_factory=beneath_factory)
        elif not annotations.accepts(hint, value):
            yield f"{key}: {misplaced(value, hint)}"
        else:
            yield from self.items(value, hint, key, beneath_factory=beneath_factory)

    def items(self, value: Any, hint: Any, key: str, *, beneath_factory: bool) -> Iterator[str]:
        """Compare the items of a dictionary or a list with the annotation of its elements."""
        for at, child, item in items_of(value, key):
            element = annotations.element_hint(hint, at)
            yield from self.value(item, element, child, beneath_factory=beneath_factory)

    def reference(self, plain: Any, hint: Any, key: str) -> Iterator[str]:
        """Compare a reference to a node elsewhere with its slot."""
        if isinstance(plain, dict) and "_target_" in plain:
            with suppress(ConfigError):  # reported at the node itself
                target = locate(str(plain["_target_"]), self.trust)
                yield from _misfit(
                    target, is_factory=plain.get("_partial_", False) is True, hint=hint, key=key
                )

    def node(
        self, node: dict[str, Any], hint: Any, key: str, *, beneath_factory: bool
    ) -> Iterator[str]:
        """Compare a node with its slot and with the signature of its target."""
        try:
            target = locate(str(node["_target_"]), self.trust)
        except ConfigError as error:
            yield f"{key}: {error}"
            return
        is_partial = node.get("_partial_", False)
        if not isinstance(is_partial, bool):
            yield f"{key}._partial_: {_shown(is_partial)} is not a bool; write true or leave it out"
        is_factory = is_partial is True
        yield from _misfit(target, is_factory=is_factory, hint=hint, key=key)
        if beneath_factory and not is_factory and is_module(target):
            yield (
                f"{key}: one module would be shared by all products of the factory around it; "
                "add `_partial_: true`, so that each gets its own"
            )
        parameters = annotations.parameters(target)
        if any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values()):
            yield (
                f"{key}: {target.__name__} has * or ** arguments, which cannot be checked; "
                "wrap it in a function with an explicit signature"
            )
            return
        passed = annotations.positional(hint) if is_factory else ()
        by_code = list(parameters)[: len(passed or ())]  # those that the caller of a factory passes
        yield from (f"{key}.{n}: is passed by the code; remove it" for n in by_code if n in node)
        values = {n: v for n, v in node.items() if n not in ("_target_", "_partial_", *by_code)}
        free = {n: each for n, each in parameters.items() if n not in by_code}
        below = beneath_factory or is_factory
        yield from self.arguments(values, free, key, beneath_factory=below)
        if passed is not None:
            yield from self.absent(values, free, key)

    def arguments(
        self,
        node: Mapping[str, Any],
        parameters: Mapping[str, inspect.Parameter],
        key: str = "",
        *,
        beneath_factory: bool = False,
    ) -> Iterator[str]:
        """Compare each key with the parameters, and its value with the annotation. At the root, `key` is empty."""
        prefix = f"{key}." if key else ""
        for name, value in node.items():
            child = f"{prefix}{name}"
            if name in parameters:
                hint = slot(parameters[name].annotation)
                yield from self.value(value, hint, child, beneath_factory=beneath_factory)
            else:
                known = [n for n, each in parameters.items() if not _is_tensor(each.annotation)]
                yield f"{child}: no such key; {suggestion(str(name), known, prefix)}"

    def absent(
        self, node: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], key: str = ""
    ) -> Iterator[str]:
        """Yield a line for each required parameter that is missing."""
        for name, parameter in parameters.items():
            child = f"{key}.{name}" if key else name
            is_required = parameter.default is inspect.Parameter.empty
            if is_required and name not in node and child not in FILLED_IN:
                hint = annotations.describe_hint(slot(parameter.annotation))
                yield f"{child}: is required and missing; add it ({hint})"


def slot(hint: Any) -> Any:
    """Return the annotation that a value must fit: for `Deferred[T]`, `T`."""
    return get_args(hint)[0] if get_origin(hint) is Deferred else hint


def _is_tensor(hint: Any) -> bool:
    """Return whether an argument is a tensor, which the code passes and a configuration cannot."""
    shown = annotations.describe_hint(slot(hint))
    return "Tensor" in shown and "->" not in shown  # a function of tensors is a part


def is_module(target: Any) -> bool:
    """Return whether a target makes a torch module."""
    from torch import nn  # takes 1.6 s; only a tree with a module needs it

    made = annotations.product(target)
    return inspect.isclass(made) and issubclass(made, nn.Module)


def _misfit(target: Any, *, is_factory: bool, hint: Any, key: str) -> Iterator[str]:
    """Yield a line if a target does not fit a slot."""
    made = annotations.product(target)
    name, wanted = target.__name__, annotations.describe_hint(hint)
    factory_fits = annotations.takes_factory(hint, made)
    if is_factory:
        if not factory_fits and annotations.takes(hint, made):
            yield f"{key}: is a factory, but {wanted} is required; remove `_partial_: true`"
        elif not factory_fits:
            yield f"{key}: {name} does not make {_with_article(wanted)}; choose another _target_"
    elif factory_fits and annotations.wants_factory(hint, made):
        yield f"{key}: is built immediately, but a factory {wanted} is required; add `_partial_: true`"
    elif not annotations.takes(hint, made):
        yield f"{key}: {name} is not {_with_article(wanted)}; choose another _target_"


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def misplaced(value: Any, hint: Any) -> str:
    """Return why a value does not fit its slot, and what to use instead."""
    if choices := annotations.choices(hint):
        listed = " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
        return f"{_shown(value)} is not one of the choices; use {listed}"
    kind = _with_article(annotations.describe_hint(hint))
    known = (REMEDIES[member] for member in annotations.alternatives(hint) if member in REMEDIES)
    remedy = _in_digits(value, hint) or next(known, "use a value of that type")
    return f"{_shown(value)} is not {kind}; {remedy}"


def _with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOaeio' else 'a'} {kind}"


def _in_digits(value: Any, hint: Any) -> str | None:
    """Return how to write a number that has a letter after it, such as 2.5B."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmbgt])", str(value).lower())
    kinds = {int, float} & {*annotations.alternatives(hint)}
    if found is None or not kinds:
        return None
    digits, power = found[1], LETTERS[found[2]]
    whole = round(float(digits) * 10**power)
    return f"write {digits}e{power}" if float in kinds else f"write {whole}"
