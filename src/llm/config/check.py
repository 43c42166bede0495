"""The check of a composed configuration before anything heavy starts: the constructor is the schema.

The tree is walked, and every node is compared with the signature of its `_target_`: keys are
parameters, values have the annotated types, what is required is there. Then the constructors
themselves are asked where that is cheap: frozen dataclasses are built, and the model on torch's
`meta` device, where it takes neither memory nor time. Everything wrong is reported at once.
"""

import dataclasses
import inspect
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm.config import annotations
from llm.config.allowlist import locate, trusted_packages
from llm.config.build import build
from llm.config.errors import ConfigError, suggestion
from llm.config.ranges import out_of_range
from llm.config.requirements import PROVISIONAL, unmet
from llm.config.rules import DEFERRED, RULES, SECTIONS

MISSING = "???"
REMEDIES: dict[Any, str] = {
    int: "use a whole number such as 8",
    float: "use a number such as 0.1",
    bool: "use true or false",
    str: "use a text such as word",
}
LETTERS = {"k": 3, "m": 6, "b": 9, "g": 9, "t": 12}  # powers of ten


def check(config: DictConfig, deferred: Collection[str] = DEFERRED) -> None:
    """Compare a composed configuration with the constructors that it names.

    Args:
        config: the whole tree, as Hydra hands it to an app.
        deferred: full keys that may be missing, for the caller gives them to `build`.

    Raises:
        ConfigError: with all problems at once, one line each: `full.key: what is wrong; the fix`.
    """
    problems: list[str] = []
    plain = _resolved(config, "", problems)
    try:
        trust = trusted_packages(plain.get("trust") or ())
    except ConfigError as error:
        trust = ()
        problems.append(str(error))
    is_trusted = not any(line.startswith("trust: ") for line in problems)
    walk = Walk(trust=tuple(trust), deferred=frozenset(deferred))
    problems += walk.sections(plain)
    whole = _dereferenced(plain)
    problems += [line for rule in RULES for line in rule(whole)]
    if is_trusted:  # without which nothing can be built
        problems += out_of_range(config)
        problems += _refused(config, plain, walk, problems)
    if not problems:
        problems += unmet(config, whole, trust)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


class Unresolved:
    """Stands where an interpolation led nowhere; that is reported once, and fits everywhere."""


UNRESOLVED = Unresolved()


@dataclasses.dataclass(frozen=True)
class NodeReference:
    """A part that stands elsewhere in the tree and is judged there; here it must only fit its slot."""

    plain: Any


def _resolved(node: Any, key: str, problems: list[str]) -> Any:
    """A tree as plain data; interpolations that lead nowhere become problems."""
    if isinstance(node, ListConfig):
        names: Any = range(len(node))
    elif isinstance(node, DictConfig):
        names = node.keys()
    else:
        return node
    plain = {
        name: _value(node, name, f"{key}.{name}" if key else str(name), problems) for name in names
    }
    return plain if isinstance(node, DictConfig) else list(plain.values())


def _dereferenced(plain: Any) -> Any:
    """The tree with every part written out where it is referred to, as rules over the whole read it."""
    if isinstance(plain, NodeReference):
        return _dereferenced(plain.plain)
    if isinstance(plain, dict):
        return {name: _dereferenced(value) for name, value in plain.items()}
    return [_dereferenced(value) for value in plain] if isinstance(plain, list) else plain


def _value(node: Any, name: Any, key: str, problems: list[str]) -> Any:
    if OmegaConf.is_missing(node, name):
        return MISSING
    try:
        value = node[name]
    except OmegaConfBaseException as error:
        written = node._get_node(name)._value()
        reason = str(error).splitlines()[0]
        problems.append(f"{key}: {written} cannot be resolved ({reason}); name a key that exists")
        return UNRESOLVED
    if OmegaConf.is_interpolation(node, name) and OmegaConf.is_config(value):
        return NodeReference(_resolved(value, key, []))
    return None if value is None else _resolved(value, key, problems)


@dataclasses.dataclass(frozen=True)
class Walk:
    """A walk through a plain tree that yields one line for each problem.

    Attributes:
        trust: packages on the whitelist by the user's word.
        deferred: full keys that may be missing.
    """

    trust: tuple[str, ...] = ()
    deferred: frozenset[str] = frozenset()

    def sections(self, plain: dict[str, Any]) -> Iterator[str]:
        """The whole tree, from its top."""
        for name, value in plain.items():
            if name not in SECTIONS:
                yield f"{name}: no such key; {suggestion(name, SECTIONS)}"
            elif value is not None:
                yield from self.value(value, SECTIONS[name](), name)

    def value(
        self, value: Any, hint: Any, key: str, beneath_factory: bool = False
    ) -> Iterator[str]:
        """Any value in its slot."""
        if isinstance(value, Unresolved):
            return
        if isinstance(value, NodeReference):
            yield from self.reference(value.plain, hint, key)
        elif isinstance(value, str) and value == MISSING:
            if key not in self.deferred:
                yield f"{key}: has no value; set it with {key}=…"
        elif isinstance(value, dict) and "_target_" in value:
            yield from self.node(value, hint, key, beneath_factory)
        elif not annotations.accepts(hint, value):
            yield f"{key}: {_misplaced(value, hint)}"
        else:
            yield from self.items(value, hint, key, beneath_factory)

    def items(self, value: Any, hint: Any, key: str, beneath_factory: bool) -> Iterator[str]:
        """What lies in a dictionary or a list, each in the slot that the hint has for it."""
        named = isinstance(value, dict)
        items = value.items() if named else enumerate(value if isinstance(value, list) else ())
        for at, item in items:
            child = f"{key}.{at}" if named else f"{key}[{at}]"
            yield from self.value(item, annotations.element_hint(hint, at), child, beneath_factory)

    def reference(self, plain: Any, hint: Any, key: str) -> Iterator[str]:
        """A part that stands elsewhere in the tree, in its slot."""
        if isinstance(plain, dict) and "_target_" in plain:
            with suppress(ConfigError):  # told where the part stands
                target = locate(str(plain["_target_"]), self.trust)
                yield from _misfit(target, plain.get("_partial_", False) is True, hint, key)

    def node(
        self, node: dict[str, Any], hint: Any, key: str, beneath_factory: bool
    ) -> Iterator[str]:
        """A node that names a target, against its slot and against the target's signature."""
        try:
            target = locate(str(node["_target_"]), self.trust)
        except ConfigError as error:
            yield f"{key}: {error}"
            return
        is_factory = node.get("_partial_", False) is True
        yield from _misfit(target, is_factory, hint, key)
        if beneath_factory and not is_factory and _is_module(target):
            yield (
                f"{key}: one module would be shared by everything that the factory around it makes; "
                "add `_partial_: true`, so that each gets its own"
            )
        parameters = annotations.parameters(target)
        if any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values()):
            yield (
                f"{key}: {target.__name__} takes * or ** arguments, which cannot be checked; "
                "wrap it in a function with an explicit signature"
            )
            return
        given = _given_by_code(parameters, hint, is_factory)
        yield from self.arguments(node, parameters, given, key, beneath_factory or is_factory)
        if not is_factory or annotations.positional(hint) is not None:
            yield from self.absent(node, parameters, given, key)

    def arguments(
        self,
        node: dict[str, Any],
        parameters: dict[str, inspect.Parameter],
        given: Collection[str],
        key: str,
        beneath_factory: bool,
    ) -> Iterator[str]:
        """Each key of a node is a parameter, and its value has the annotated type."""
        for name, value in node.items():
            child = f"{key}.{name}"
            if name in ("_target_", "_partial_"):
                if name == "_partial_" and not isinstance(value, bool):
                    yield f"{child}: {_shown(value)} is not a bool; write true or leave it out"
            elif name in given:
                yield f"{child}: is given by the code; remove it"
            elif name in parameters:
                yield from self.value(value, parameters[name].annotation, child, beneath_factory)
            else:
                free = [n for n in parameters if n not in given]
                yield f"{child}: no such key; {suggestion(str(name), free, f'{key}.')}"

    def absent(
        self,
        node: dict[str, Any],
        parameters: dict[str, inspect.Parameter],
        given: Collection[str],
        key: str,
    ) -> Iterator[str]:
        """What a target requires and nobody gives."""
        for name, parameter in parameters.items():
            child = f"{key}.{name}"
            required = parameter.default is inspect.Parameter.empty and name not in given
            if required and name not in node and child not in self.deferred:
                hint = annotations.describe_hint(parameter.annotation)
                yield f"{child}: is required and not there; add it ({hint})"


def _given_by_code(
    parameters: dict[str, inspect.Parameter], hint: Any, is_factory: bool
) -> Collection[str]:
    """The names of the parameters that a factory's caller gives by position."""
    count = len(annotations.positional(hint) or ()) if is_factory else 0
    return list(parameters)[:count]


def _misfit(target: Any, is_factory: bool, hint: Any, key: str) -> Iterator[str]:
    """Why a target does not belong into a slot."""
    made = annotations.product(target)
    name, wanted = target.__name__, annotations.describe_hint(hint)
    factory_fits = annotations.takes_factory(hint, made)
    if is_factory:
        if not factory_fits and annotations.takes(hint, made):
            yield f"{key}: is a factory where {wanted} itself is wanted; remove `_partial_: true`"
        elif not factory_fits:
            yield f"{key}: {name} does not make {_with_article(wanted)}; choose another _target_"
    elif factory_fits and annotations.wants_factory(hint, made):
        yield f"{key}: is built at once where a factory {wanted} is wanted; add `_partial_: true`"
    elif not annotations.takes(hint, made):
        yield f"{key}: {name} is not {_with_article(wanted)}; choose another _target_"


def _is_module(target: Any) -> bool:
    from torch import nn

    made = annotations.product(target)
    return inspect.isclass(made) and issubclass(made, nn.Module)


def _refused(
    config: DictConfig, plain: dict[str, Any], walk: Walk, problems: list[str]
) -> Iterator[str]:
    """What the constructors themselves have to say, of the sections without problems so far."""
    faulty = {re.split(r"[.:\[]", line)[0] for line in problems}
    settings = {}
    for name in plain.keys() - faulty:
        node = plain[name]
        if faulty and _refers(node):  # perhaps to what is faulty, which is told there
            continue
        if isinstance(node, dict) and "_target_" in node:
            target = locate(str(node["_target_"]), walk.trust)
            if dataclasses.is_dataclass(target):
                settings[name] = {}
            elif name == "model" and _is_module(target):
                settings[name] = _provisional(node, annotations.parameters(target), walk.deferred)
    refused = [line for name in settings if name != "model" for line in _try(config[name], {})]
    if "callbacks" not in faulty:  # whose constructors come late in a run
        parts = plain.get("callbacks") or {}
        given = (name for name, node in parts.items() if node is not None)
        refused += [line for name in given for line in _try(config.callbacks[name], {})]
    yield from refused
    if "model" in settings and not refused:  # what is wrong with a size is told once
        import torch

        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            yield from _try(config["model"], settings["model"])


def _refers(plain: Any) -> bool:
    """Whether a tree holds parts that stand elsewhere."""
    children = (
        plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else ()
    )
    return isinstance(plain, NodeReference) or any(map(_refers, children))


def _try(node: DictConfig, extra: dict[str, Any]) -> Sequence[str]:
    try:
        build(node, **extra)
    except ConfigError as error:
        return error.problems
    except (RuntimeError, OverflowError) as error:  # of torch: no tensor can be as large as that
        reason = str(error).splitlines()[0]
        return (f"{node._get_full_key(None)}: cannot be built ({reason}); choose smaller sizes",)
    return ()


def _provisional(
    node: dict[str, Any], parameters: Collection[str], deferred: Collection[str]
) -> dict[str, Any]:
    """Stand-ins for what the caller will give to the model, as far as the model takes it."""
    names = [key.removeprefix("model.") for key in deferred if key.startswith("model.")]
    names = [name for name in names if name in parameters]
    return {name: PROVISIONAL for name in names if node.get(name, MISSING) in (None, MISSING)}


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def _misplaced(value: Any, hint: Any) -> str:
    """Why a value does not fit its slot, and what does."""
    if choices := annotations.choices(hint):
        listed = " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
        return f"{_shown(value)} is not one of the choices; use {listed}"
    kind = _with_article(annotations.describe_hint(hint))
    return f"{_shown(value)} is not {kind}; {_in_digits(value, hint) or _remedy(hint)}"


def _with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOaeio' else 'a'} {kind}"


def _in_digits(value: Any, hint: Any) -> str | None:
    """What to write for a number with a letter behind it, such as 2.5B tokens."""
    found = (
        re.fullmatch(r"(\d+(?:\.\d+)?) *([kmbgt])", value.lower())
        if isinstance(value, str)
        else None
    )
    kinds = {int, float} & {*annotations.alternatives(hint)}
    if found is None or not kinds:
        return None
    digits, power = found[1], LETTERS[found[2]]
    return (
        f"write {digits}e{power}" if float in kinds else f"write {round(float(digits) * 10**power)}"
    )


def _remedy(hint: Any) -> str:
    return REMEDIES.get(hint, "use a value of that type")
