"""The check of a composed configuration before anything heavy starts.

First the tree is compared with the signatures that it names (`llm.config.walk`). Then all objects that need neither
data nor weights are built, and the model on torch's `meta` device, which takes almost no memory and time. All problems
are reported at once. The built objects are used, not built again.
"""

import inspect
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_origin

from omegaconf import DictConfig, Node, OmegaConf

from llm.config import annotations
from llm.config.allowlist import ROOTS, locate, trusted_packages
from llm.config.base import Command
from llm.config.build import build
from llm.config.composed import Composed
from llm.config.deferred import Deferred
from llm.config.errors import ConfigError, collecting, key_of_line, raise_all
from llm.config.plain import value_at
from llm.config.ranges import out_of_range
from llm.config.requirements import FILLED_IN, PROVISIONAL, other_data, unmet
from llm.config.rules import RULES, Rule
from llm.config.walk import (
    Walk,
    dereference,
    is_module,
    misplaced,
    node_references,
    resolved_value,
    slot,
)


def check(composed: Composed) -> Any:
    """Check a configuration and build the command that it names at its root.

    If the command trains from weights, they are checked and built first, and `Command.adopt` copies their
    architecture into the tree. Then the whole tree is checked.

    Raises:
        ConfigError: all problems at once, one line each: `full.key: what is wrong; the fix`.
    """
    command = command_class(composed.config)
    parameters = annotations.parameters(command)
    del parameters["composed"]  # passed by the code
    slots = {name: each.annotation for name, each in parameters.items()}
    config, problems, known = composed.config, [], {}
    if command.adopt is not None:
        with collecting(problems):
            known = check_nodes(config, {"weights": slots["weights"]})
            config = command.adopt(composed, known.get("weights"))
    tree = Tree(config, slots, problems)
    plain = tree.resolved(key for key in config if key != "_target_")
    problems += tree.walk.arguments(plain, parameters)
    problems += tree.walk.absent(plain, parameters)
    values = tree.build(plain, rules=command.rules, known=known)
    tree.require_none()
    return command(composed=composed, **values)


def check_nodes(config: DictConfig, slots: Mapping[str, Any]) -> dict[str, Any]:
    """Check some sections of a tree, such as the config of another run, and return the built objects.

    Args:
        config: the tree, which may set `trust`.
        slots: the annotation of each section; for a `Deferred[T]`, only a model on `meta` is built.

    Raises:
        ConfigError: all problems at once.
    """
    tree = Tree(config, slots, [])
    plain = tree.resolved(name for name in slots if name in config)
    for name, value in plain.items():
        tree.problems += tree.walk.value(value, slot(slots[name]), name)
    values = tree.build(plain)
    tree.require_none()
    return values


def command_class(config: DictConfig) -> type[Command]:
    """Return the command at the root of a tree.

    Raises:
        ConfigError: there is none.
    """
    path = str(OmegaConf.select(config, "_target_"))
    if path == "None":
        raise ConfigError(
            "_target_: the configuration names no command; add one, such as train, as the first of its defaults"
        )
    is_ours = path.startswith(tuple(f"{package}." for package in ROOTS))
    try:
        target = locate(path, () if is_ours else config.get("trust") or (), is_root=True)
    except ConfigError as error:
        lines = error.problems
        raise ConfigError(
            *(x if x.startswith("trust: ") else f"_target_: {x}" for x in lines)
        ) from None
    if not (inspect.isclass(target) and issubclass(target, Command)):
        raise ConfigError(
            f"_target_: {path} is not a command; name a subclass of llm.config.base.Command"
        )
    return target


@dataclass
class Tree:
    """A composed tree that is being checked.

    Attributes:
        config: the tree.
        slots: the annotations of the sections at its root.
        problems: the problems so far, one line each.
        trust: packages of the user that `_target_` may name.
        is_trusted: whether `trust` is valid; otherwise nothing can be built.
    """

    config: DictConfig
    slots: Mapping[str, Any]
    problems: list[str]
    trust: Sequence[str] = field(init=False, default=())
    is_trusted: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        given = self.resolved(["trust"] if "trust" in self.config else [])
        packages = dereference(given.get("trust") or [])
        lines: list[str] = []
        if not (isinstance(packages, list) and annotations.accepts(Sequence[str], packages)):
            lines.append(f"trust: {misplaced(packages, Sequence[str])}")
        with collecting(lines):
            self.trust = () if lines else trusted_packages(packages)
        self.is_trusted = not lines
        self.problems += lines

    @property
    def walk(self) -> Walk:
        """The walk that compares the tree with signatures."""
        return Walk(tuple(self.trust), frozenset(self.slots))

    def resolved(self, sections: Iterable[Any]) -> dict[str, Any]:
        """Return sections as plain data; references to missing keys become problems."""
        return {name: resolved_value(self.config, name, name, self.problems) for name in sections}

    def require_none(self) -> None:
        """Raise a ConfigError with all problems, if there are any."""
        lines = [line for line in self.problems if not self._is_repeated(line)]
        raise_all(lines)

    def _is_repeated(self, line: str) -> bool:
        """Return whether a reference, such as `data.seed: ${seed}`, has the same problem as its key."""
        key, _, problem = line.partition(": ")
        section, _, name = key.rpartition(".")
        parent = OmegaConf.select(self.config, section, throw_on_resolution_failure=False)
        if not isinstance(parent, DictConfig):
            return False
        node = parent._get_node(name, validate_access=False)
        target = node._maybe_dereference_node() if isinstance(node, Node) else None
        other = key if target is None else target._get_full_key(None)
        return other != key and f"{other}: {problem}" in self.problems

    def build(
        self,
        plain: Mapping[str, Any],
        *,
        rules: Sequence[Rule] = (),
        known: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Build each section that is not deferred; errors of constructors become problems.

        Args:
            plain: the sections as plain data.
            rules: further checks of the whole tree.
            known: sections that are already built.
        """
        whole = dereference(plain)
        found = [line for rule in (*RULES, *rules) for line in rule(whole)]
        # One kind of problem is reported for each key: of its rules, otherwise of its type, otherwise of its range.
        keys = {key_of_line(line) for line in found}
        self.problems[:] = [line for line in self.problems if key_of_line(line) not in keys] + found
        if not self.is_trusted:
            return {}
        keys = {key_of_line(line) for line in self.problems}
        ranges = out_of_range(self.config, plain)
        self.problems += [line for line in ranges if key_of_line(line) not in keys]
        faulty = {re.split(r"[.:\[]", line)[0] for line in self.problems}
        values, refused = dict(known or {}), []
        for name in self.slots:
            if name in values or name not in plain or _depends_on(faulty, name, plain[name]):
                continue
            with collecting(refused):
                values[name] = self._section(name)
        self.problems += refused
        if not refused:  # otherwise a wrong size would be reported twice
            self._outline(plain, faulty, values)
        return values

    def _section(self, name: str) -> Any:
        """Build a section, or defer it."""
        hint = self.slots[name]
        if get_origin(hint) is Deferred:
            return Deferred(self.config, name)
        node = self.config[name]
        if isinstance(node, DictConfig) and "_target_" not in node:
            return build_each(node)
        return annotations.conform(build(node) if OmegaConf.is_config(node) else node, hint)

    def _outline(
        self, plain: Mapping[str, Any], faulty: Collection[str], values: dict[str, Any]
    ) -> None:
        """Build the model to be trained on `meta`, and check that it has what the task requires."""
        sound = {name for name, node in plain.items() if not _depends_on(faulty, name, node)}
        task = self._target(plain.get("task")) if "task" in sound else None
        is_whole = task is not None and plain["task"].get("model") is not None
        if not is_whole and not ("model" in sound and is_module(self._target(plain["model"]))):
            return
        section, key = ("task", "task.model") if is_whole else ("model", "model")
        try:
            model = build_on_meta(self.config, key)
        except ConfigError as error:
            references = dict(node_references(plain))
            self.problems += [_with_node_key(line, references) for line in error.problems]
            return
        if isinstance(values[section], Deferred):
            values[section] = replace(values[section], outline=model)
        if task is not None and not self.problems:
            data = self._target(plain.get("data"))
            order = self._target(value_at(plain, "data.order"))
            self.problems += [*other_data(task, data), *unmet(task, model), *unmet(order, model)]

    def _target(self, plain: Any) -> Any:
        """Return the target of a node without problems; None if it is not a node."""
        if not (isinstance(plain, dict) and "_target_" in plain):
            return None
        return locate(str(plain["_target_"]), self.trust)


def build_each(node: DictConfig) -> dict[Any, Any]:
    """Build each node of a section.

    Raises:
        ConfigError: all problems at once.
    """
    built, problems = {}, []
    for name in node:
        with collecting(problems):
            built[name] = build(node[name]) if OmegaConf.is_config(node[name]) else node[name]
    raise_all(problems)
    return built


def build_on_meta(config: DictConfig, key: str) -> Any:
    """Build a model without weights, with a provisional number for each missing size.

    Raises:
        ConfigError: a constructor rejects a value, or torch rejects a size.
    """
    import torch  # takes 1.6 s; only a tree with a model needs it

    config = with_provisional_sizes(config)
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return build(OmegaConf.select(config, key))
    except (RuntimeError, OverflowError) as error:  # torch cannot represent a tensor this large
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key}: cannot be built ({reason}); choose smaller sizes") from error


def with_provisional_sizes(config: DictConfig) -> DictConfig:
    """Return a copy of a tree with a provisional number for each size that the data will determine."""
    config = config.copy()
    for key in FILLED_IN:
        if _is_open(config, key):
            OmegaConf.update(config, key, PROVISIONAL, force_add=True)
    return config


def _is_open(config: DictConfig, key: str) -> bool:
    """Return whether a node accepts a value but does not set it."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent, throw_on_missing=False)
    if not isinstance(node, DictConfig) or node.get("_target_") is None:
        return False
    if name in node:
        return OmegaConf.is_missing(node, name) or node[name] is None
    return name in annotations.parameters(locate(str(node._target_), config.get("trust") or ()))


def _depends_on(faulty: Collection[str], name: str, plain: Any) -> bool:
    """Return whether a section has problems, or may refer to one that has."""
    return name in faulty or bool(faulty and any(node_references([plain])))


def _with_node_key(line: str, references: Mapping[str, str]) -> str:
    """Return the line of a problem with the key of the node instead of the key of a reference to it."""
    for reference, key in sorted(references.items(), reverse=True):
        if line.startswith((f"{reference}.", f"{reference}:")):
            return key + line.removeprefix(reference)
    return line
