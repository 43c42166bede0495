"""Building objects from nodes of a configuration: the only place that calls a `_target_`.

The keys are Hydra's (`_target_`, `_partial_: true`), but its `instantiate` is not used: its partials check every
call, which takes 80 µs in each layer of each step, and it wraps errors in its own text.
"""

import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import CodeType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llm.config import annotations
from llm.config.allowlist import locate
from llm.config.errors import ConfigError, raise_all
from llm.config.plain import items_of, nested_items

# What a constructor raises if the user's values are wrong.
MISTAKES = (ValueError, FileNotFoundError)


def build(node: Any, **kwargs: Any) -> Any:
    """Call the `_target_` of a node with the node's values and `kwargs`. Nested nodes are built first.

    Args:
        node: a node of the composed tree, or a plain dictionary; None returns None. A section without
            `_target_` returns a dictionary of the built objects.
        kwargs: further arguments, passed unchanged; they replace values of the same name.

    Returns:
        What the target returns. For a node with `_partial_: true`: a factory that calls the target.

    Raises:
        ConfigError: a target is not on the allowlist, or a constructor rejects a value. Each line starts
            with the full key of its node.
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
        raise ConfigError(
            _problem_line(_failing_key(error, targets) or key, targets, error)
        ) from error


@contextmanager
def config_errors_at(key: str, target: Callable[..., Any] | None = None) -> Iterator[None]:
    """Turn an error about the user's values into a ConfigError about `key`.

    Args:
        key: the key.
        target: what its node makes, if a message that begins with one of its parameters is about that key.

    Raises:
        ConfigError: the body raised a ValueError or a FileNotFoundError.
    """
    try:
        yield
    except MISTAKES as error:
        targets = {} if target is None else {key: target}
        raise ConfigError(_problem_line(key, targets, error)) from error


def authorize(plain: Any, key: str, trust: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Return the targets of all nodes in plain data, by full key.

    Raises:
        ConfigError: targets are not on the allowlist, one line each.
    """
    targets, problems = {}, []
    for name, full, path in nested_items(plain, key):
        if name == "_target_":
            node_key = full.rpartition(".")[0]
            try:
                targets[node_key] = locate(str(path), trust)
            except ConfigError as error:
                problems.append(f"{node_key}: {error}")
    raise_all(problems)
    return targets


def _trust(node: Any) -> Sequence[str]:
    root = node._get_root()
    return (root.get("trust") or ()) if isinstance(root, DictConfig) else ()


def _build(plain: Any, key: str, targets: dict[str, Callable[..., Any]], extra: Any) -> Any:
    if not isinstance(plain, dict | list):
        return plain
    built = {
        name: _build(child, child_key, targets, {})
        for name, child_key, child in items_of(plain, key)
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


def _failing_key(error: Exception, targets: dict[str, Callable[..., Any]]) -> str | None:
    """Return the full key of the innermost node whose target raised the error."""
    keys: dict[CodeType, str] = {}
    for key, target in targets.items():
        keys.setdefault(_code(target), key)
    running = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((keys[code] for code in reversed(running) if code in keys), None)


def _problem_line(key: str, targets: Mapping[str, Callable[..., Any]], error: Exception) -> str:
    """Return the line about a parameter if the message begins with its name (`rank=0: …`), otherwise about the node."""
    message = _one_line(error)
    name = re.split("[=:]", message, maxsplit=1)[0]
    is_parameter = key in targets and name in annotations.parameters(targets[key])
    return f"{key}.{message}" if is_parameter else f"{key}: {message}"


def _code(target: Callable[..., Any]) -> Any:
    function = target.__init__ if inspect.isclass(target) else target  # type: ignore[misc]
    return getattr(inspect.unwrap(function), "__code__", None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
