"""From nodes of a configuration to objects: the only place that calls a `_target_`.

The convention is Hydra's (`_target_`, `_partial_: true`), its `instantiate` is not used: the partials
that it returns authorise every call anew, 80 microseconds each, and an activation or an attention
kernel is called in every layer of every step; and it wraps errors in text of its own.
"""

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import CodeType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llm.config import annotations
from llm.config.allowlist import locate
from llm.config.errors import ConfigError

# What a constructor raises when it is the user's values that are wrong.
MISTAKES = (ValueError, FileNotFoundError)


def build(node: Any, **kwargs: Any) -> Any:
    """Call the `_target_` of a node with the node's values and `kwargs`, its nested nodes first.

    Args:
        node: a node of the composed tree, or a plain dictionary; None gives None. A section without
            `_target_` gives a plain dictionary of what its nodes build.
        kwargs: arguments that are known to the caller only, handed over untouched; they take the
            place of values of the same name.

    Returns:
        What the target returns; of a node with `_partial_: true`, a factory that calls it.

    Raises:
        ConfigError: a target is not on the whitelist, or a constructor refused a value; each line
            starts with the full key of its node.
    """
    if node is None:
        return None
    node = node if OmegaConf.is_config(node) else OmegaConf.create(node)
    if node._is_none():
        return None
    plain = OmegaConf.to_container(node, resolve=True)
    key = node._get_full_key(None)
    targets = authorize(plain, key, _trust(node))
    try:
        return _build(plain, key, targets, kwargs)
    except MISTAKES as error:
        raise ConfigError(_told_of(_culprit(error, targets) or key, targets, error)) from error


@contextmanager
def config_errors_at(key: str) -> Iterator[None]:
    """Turn what a constructor says of the user's values into a ConfigError about `key`.

    Raises:
        ConfigError: in place of a ValueError or a FileNotFoundError.
    """
    try:
        yield
    except MISTAKES as error:
        raise ConfigError(f"{key}: {_one_line(error)}") from error


def authorize(plain: Any, key: str, trust: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """The target of every node in a tree of plain data, by full key.

    Raises:
        ConfigError: targets are not on the whitelist, one line each.
    """
    targets, problems = {}, []
    for node_key, path in _paths(plain, key):
        try:
            targets[node_key] = locate(path, trust)
        except ConfigError as error:
            problems.append(f"{node_key}: {error}")
    if problems:
        raise ConfigError(*problems)
    return targets


def _trust(node: Any) -> Sequence[str]:
    root = node._get_root()
    return (root.get("trust") or ()) if isinstance(root, DictConfig) else ()


def _children(plain: Any, key: str) -> Iterator[tuple[Any, str, Any]]:
    """What lies directly in a dictionary or a list: (name, full key, value)."""
    if isinstance(plain, dict):
        for name, value in plain.items():
            yield name, f"{key}.{name}" if key else str(name), value
    elif isinstance(plain, list):
        for index, value in enumerate(plain):
            yield index, f"{key}[{index}]", value


def _paths(plain: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(plain, dict) and "_target_" in plain:
        yield key, str(plain["_target_"])
    for _, child_key, child in _children(plain, key):
        yield from _paths(child, child_key)


def _build(plain: Any, key: str, targets: dict[str, Callable[..., Any]], extra: Any) -> Any:
    if not isinstance(plain, dict | list):
        return plain
    built = {
        name: _build(child, child_key, targets, {})
        for name, child_key, child in _children(plain, key)
        if name not in ("_target_", "_partial_", *extra)
    }
    if isinstance(plain, list):
        return list(built.values())
    if "_target_" not in plain:
        return built | extra
    hints = annotations.parameters(targets[key])
    for name in built.keys() & hints.keys():
        built[name] = annotations.conform(built[name], hints[name].annotation)
    missing = [name for name, value in built.items() if isinstance(value, str) and value == "???"]
    if plain.get("_partial_", False):
        arguments = {name: built[name] for name in built if name not in missing} | extra
        return partial(targets[key], **arguments) if arguments else targets[key]
    if missing:
        lines = (f"{key}.{name}" if key else name for name in missing)
        raise ConfigError(*(f"{line}: has no value; set it with {line}=…" for line in lines))
    return targets[key](**built, **extra)


def _culprit(error: Exception, targets: dict[str, Callable[..., Any]]) -> str | None:
    """The full key of the innermost node whose target was running when the error arose."""
    keys: dict[CodeType, str] = {}
    for key, target in targets.items():
        keys.setdefault(_code(target), key)
    running = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((keys[code] for code in reversed(running) if code in keys), None)


def _told_of(key: str, targets: Mapping[str, Callable[..., Any]], error: Exception) -> str:
    """The line about a node: what begins with a parameter (`rank=0: give 1 or more`) is about the parameter's key."""
    told = _one_line(error)
    name, equals, _ = told.partition("=")
    is_parameter = equals and key in targets and name in annotations.parameters(targets[key])
    return f"{key}.{told}" if is_parameter else f"{key}: {told}"


def _code(target: Callable[..., Any]) -> Any:
    function = target.__init__ if inspect.isclass(target) else target  # type: ignore[misc]
    return getattr(inspect.unwrap(function), "__code__", None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
