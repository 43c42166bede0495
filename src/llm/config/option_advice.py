"""Messages about an option that does not suit the others, such as `model/kernel=naive` for a recurrence.

The check reports keys that the user has not typed. These functions name the option that sets them, and a remedy.
"""

import inspect
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llm.config import annotations
from llm.config.allowlist import locate
from llm.config.composed import Composed
from llm.config.errors import ConfigError, key_of_line
from llm.config.loader import Loader
from llm.config.overrides import key_of

MISSING = re.compile(r"Interpolation key '(.*?)' not found")


def about_options(lines: Sequence[str], point: Composed, loader: Loader) -> list[str]:
    """Return the problems, with one line for each typed option or function that does not suit the keys of the others.

    Args:
        lines: the problems, one line each.
        point: the composed command.
        loader: the loader that composed it.
    """
    kept, typed = [*lines], {key_of(word) for word in point.overrides}
    for group, option in point.choices.items():
        section = group.replace("/", ".")
        if "/" not in group or option is None or section not in typed:
            continue
        own = [x for x in kept if x.startswith(f"{section}.") and key_of_line(x) not in typed]
        if missing := [key for line in own for key in MISSING.findall(line)]:
            kept = [x for x in kept if x not in own or not MISSING.search(x)]
            remedy = (
                f"use {group}=none" if "none" in loader.get_group_options(group) else "leave it out"
            )
            owner = _owner(missing[0], point)
            kept.append(
                f"{group}={option}: needs {', '.join(missing)}, which {owner} does not have; {remedy}"
            )
        key = loader.package_of(group, option)
        if key == section or not any(x.startswith(f"{key}: no such key; ") for x in kept):
            continue
        kept = [x for x in kept if not x.startswith(f"{key}: no such key; ")]
        parent, _, name = key.rpartition(".")
        others = " or ".join(_other_functions(point.config, parent, without=name))
        remedy = f"leave it out{', or use ' if others else ''}{others}"
        kept.append(f"{group}={option}: {_owner(key, point)} has no {name}; {remedy}")
    return _about_targets(_about_names(kept, point, loader), typed)


def _about_names(lines: Sequence[str], point: Composed, loader: Loader) -> list[str]:
    """Return the problems, with one line for each key set to the name of an option, such as `model.norm=layer`."""
    kept = [*lines]
    for word in point.own:
        key, _, name = word.lstrip("+").partition("=")
        section, _, last = key.rpartition(".")
        group = f"{section.partition('.')[0]}/{last}"
        is_name = section and name in loader.get_group_options(group)
        if is_name and any(line.startswith(f"{key}: ") for line in kept):
            chosen = f"{group}={name}" if "." not in section else f"+{group}@{key}={name}"
            kept = [
                line for line in kept if f": {name!r} is not a" not in line
            ]  # also of references to it
            kept.append(f"{key}: {name} is an option of {group}; choose it with {chosen}")
    return kept


def _about_targets(lines: Sequence[str], typed: Collection[str]) -> list[str]:
    """Return the problems, with one line for each typed `_target_` that lacks arguments of the one it replaces."""
    kept = [*lines]
    for section in sorted(
        key.removesuffix("._target_") for key in typed if key.endswith("._target_")
    ):
        unknown = re.compile(rf"{re.escape(section)}\.(\w+): no such key; ")
        found = {line: each[1] for line in kept if (each := unknown.match(line))}
        found = {line: name for line, name in found.items() if f"{section}.{name}" not in typed}
        if found:
            deleted = " ".join(f"~{section}.{name}" for name in found.values())
            names = ", ".join(found.values())
            kept = [line for line in kept if line not in found]
            kept.append(f"{section}._target_: has no {names}, which the config sets; add {deleted}")
    return kept


def _owner(key: str, point: Composed) -> str:
    """Return the chosen option whose section contains a key: the innermost one."""
    sections = {group.replace("/", "."): group for group in point.choices}
    inside = [section for section in sections if key.startswith(f"{section}.")]
    if not inside:
        return "this configuration"
    group = sections[max(inside, key=len)]
    return f"{group}={point.choices[group]}"


def _other_functions(config: DictConfig, section: str, *, without: str) -> Iterator[str]:
    """Yield the overrides that replace a function in a section, except one, by another of its file that fits."""
    node: Any = OmegaConf.select(config, section)
    for name in node if isinstance(node, DictConfig) else ():
        child = None if name == without or OmegaConf.is_missing(node, name) else node[name]
        with suppress(ConfigError):
            if isinstance(child, DictConfig) and "_target_" in child:
                target = locate(str(child._target_), config.get("trust") or ())
                for other in _equivalents(target):
                    taken = annotations.parameters(other)
                    extra = (
                        str(key) for key in child if key not in (*taken, "_target_", "_partial_")
                    )
                    deleted = "".join(f" ~{section}.{name}.{key}" for key in extra)
                    yield f"{section}.{name}._target_={other.__module__}.{other.__name__}{deleted}"


def _equivalents(function: Any) -> list[Any]:
    """Return the other functions of a function's file that have its required parameters."""
    if not inspect.isfunction(function):
        return []
    needed = {
        name
        for name, each in annotations.parameters(function).items()
        if each.default is each.empty
    }
    functions = vars(sys.modules[function.__module__]).values()
    own = (each for each in functions if inspect.isfunction(each) and each is not function)
    same_file = (each for each in own if each.__module__ == function.__module__)
    return [each for each in same_file if needed <= annotations.parameters(each).keys()]
