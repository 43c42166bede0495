"""Messages about a command line that Hydra cannot compose, one line for each wrong word.

Hydra's own messages suggest to prefix a key with `+`, which turns every misspelt key into a new one. So each
override is compared with the groups and keys that exist.
"""

import re
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from llm.config import annotations
from llm.config.allowlist import locate
from llm.config.errors import ConfigError, nearest, suggestion
from llm.config.fingerprint import is_among
from llm.config.hydra_section import SWEEPS
from llm.config.overrides import RENAMED, key_of

# Hydra raises ValueError for a group that is set to null and for a file that is not UTF-8.
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
ADVICE = re.compile(r"^(To append|See https|Config search path|Set the env|\s*$)")


def override_problems(
    loader: ConfigLoader, name: str, overrides: Sequence[str], *, is_sweep: bool = False
) -> Iterator[str]:
    """Yield a line for each wrong override.

    Args:
        loader: the loader that could not compose them.
        name: name of the primary config.
        overrides: the overrides of the command line.
        is_sweep: whether overrides may have several values.
    """
    groups = _groups(loader, "")
    choices, keys = [], []
    for word in overrides:
        try:
            override = OverridesParser.create(loader).parse_overrides([word])[0]
        except HYDRA_ERRORS:
            yield f"{word}: cannot be read; quote the value, twice for the shell: 'key=\"value\"'"
            continue
        if override.is_sweep_override() and not is_sweep:
            key = override.get_key_element()
            yield f"{word}: several values; add -m to run each, or write one list: {key}=[…]"
        elif override.key_or_group in groups or _is_hydra_group(loader, override.key_or_group):
            lines = list(_wrong_option(loader, override))
            yield from lines
            choices += [] if lines else [word]
        elif is_among(key_of(word), SWEEPS) and not is_sweep:
            yield f"{key_of(word)}: only a sweep uses it; add -m, or leave it out"
        elif "/" in override.key_or_group:
            yield f"{override.key_or_group}: no such group; {suggestion(override.key_or_group, groups)}"
        elif not override.is_hydra_override():
            keys.append(override)
    yield from _groupless(loader, name, choices)
    yield from _wrong_keys(loader, name, choices, keys, groups)


def _groupless(loader: ConfigLoader, name: str, choices: Sequence[str]) -> Iterator[str]:
    """Yield a line for each option of a group that the command does not use."""
    try:
        config = loader.load_configuration(name, [], run_mode=RunMode.RUN)
    except HYDRA_ERRORS:  # the primary config itself is wrong, which Hydra's message says
        return
    for word in choices:
        group = word.partition("=")[0]
        if word.startswith(("+", "~")) or "@" in group or group in config.hydra.runtime.choices:
            continue
        node = config.get(group)
        if isinstance(node, DictConfig):
            yield f"{word}: this command has keys of {group}, but not its options; {_keys_for(loader, word, node)}"
        else:
            yield f"{word}: this command does not use {group}; leave it out"


def _keys_for(loader: ConfigLoader, word: str, node: DictConfig) -> str:
    """Return the keys to set instead of an option: those that differ, otherwise all that the command has."""
    group, _, option = word.partition("=")
    own = _loaded(loader, group, option)
    plain = [key for key in own if not (OmegaConf.is_missing(own, key) or key == "_target_")]
    keys = [
        f"{group}.{key}={_written(own[key])}"
        for key in plain
        if key in node and own[key] != node[key]
    ]
    if keys:
        return f"set {' '.join(keys)}"
    return "set " + " or ".join(f"{group}.{key}=…" for key in node if key != "_target_")


def _loaded(loader: ConfigLoader, group: str, option: str) -> DictConfig:
    """Return an option's own values, without the options in its defaults."""
    result = loader.repository.load_config(f"{group}/{option}")  # pyright: ignore[reportAttributeAccessIssue]
    return OmegaConf.create() if result is None else result.config


def _written(value: Any) -> str:
    """Return a plain value as written on a command line."""
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _is_hydra_group(loader: ConfigLoader, group: str) -> bool:
    """Return whether a group is one of Hydra's own, such as `hydra/launcher`."""
    return group.startswith("hydra/") and bool(loader.get_group_options(group, ObjectType.CONFIG))


def _wrong_option(loader: ConfigLoader, override: Override) -> Iterator[str]:
    """Yield a line for each option that the group does not have."""
    group = override.key_or_group
    options = loader.get_group_options(group, ObjectType.CONFIG)
    chosen = override.value()
    if override.is_sweep_override():
        chosen = list(override.sweep_string_iterator())
    for option in chosen if isinstance(chosen, list) else [chosen]:
        if option is None:
            remedy = "choose one of" if options else "it has no options; leave it out"
            yield f"{group}=null: is not an option; {remedy} {', '.join(options)}".rstrip()
        elif isinstance(option, str | int | float) and str(option) not in options:
            new, guess = RENAMED.get(f"{group}={option}"), nearest(str(option), options)
            listed = f"there are {', '.join(options)}"
            hint = f"did you mean {guess}? ({listed})" if guess else listed
            hint = f"it is now called {new}" if new else hint
            yield f"{group}={option}: no such option; {hint}"


def _wrong_keys(
    loader: ConfigLoader,
    name: str,
    choices: list[str],
    keys: Sequence[Override],
    groups: Sequence[str],
) -> Iterator[str]:
    """Yield a line for each key that is not in the tree that the chosen options compose."""
    try:
        mode = RunMode.MULTIRUN if any("," in choice for choice in choices) else RunMode.RUN
        config = loader.load_configuration(name, choices, run_mode=mode)
    except HYDRA_ERRORS:
        return
    for override in keys:
        if not (override.is_add() or override.is_force_add()):
            for problem in _wrong_key(config, override.key_or_group, groups):
                is_unknown = ": no such key;" in problem
                yield (
                    is_unknown and _of_other_options(loader, config, override.key_or_group)
                ) or problem


def _wrong_key(config: DictConfig, key: str, groups: Sequence[str]) -> Iterator[str]:
    """Yield a line for the first word of a dotted key that does not exist."""
    node, path = config, ""
    typed = {key_of(each): each for each in config.hydra.overrides.task}
    for word in key.split("."):
        if node is None:
            remedy = f"replace {typed[path]} by another {path}=…" if path in typed else ""
            yield f"{key}: {path} is null here; {remedy or f'choose one first with {path}=…'}"
            return
        if isinstance(node, DictConfig) and word not in node.keys():  # noqa: SIM118  (`in` is False for a `???`)
            yield f"{key}: {_remedy(config, node, path=path, word=word, key=key, groups=groups)}"
            return
        path = f"{path}.{word}" if path else word
        node = OmegaConf.select(config, path, throw_on_missing=False)


def _remedy(
    config: DictConfig, node: DictConfig, *, path: str, word: str, key: str, groups: Sequence[str]
) -> str:
    """Return the message about `word` of `key`, which is not in `node` at `path`, and what to write instead."""
    if path:
        if word in _more_parameters(node):
            return f"is not in the config, but can be added; use +{key}=…"
        return f"no such key; {suggestion(word, map(str, node), f'{path}.')}"
    if key in RENAMED:
        return f"no such key; it is now called {RENAMED[key]}"
    elsewhere = _ending_in(config, key)
    if elsewhere:
        return f"no such key here; did you mean {' or '.join(elsewhere)}?"
    roots = {str(group).partition("/")[0] for group in config.hydra.runtime.choices}
    own = {group for group in groups if group.partition("/")[0] in roots}
    names = {str(name) for name in config if name not in ("hydra", "_target_")} | own
    return f"no such group or key; {suggestion(word, names)}"


def _of_other_options(loader: ConfigLoader, config: DictConfig, key: str) -> str | None:
    """Return the line about a key that only other options of its group have; None if no option has it.

    Options that leave the key open (`???`) come first, otherwise all that have it. Among them, the first one named
    has the most keys in common with the chosen option.
    """
    section, _, word = key.rpartition(".")
    group = section.replace(".", "/")
    chosen = config.hydra.runtime.choices.get(group)
    found: dict[str, DictConfig] = {}
    for option in loader.get_group_options(group, ObjectType.CONFIG) if chosen else ():
        own = _loaded(loader, group, option)
        if word in own.keys():  # noqa: SIM118  (`in` is False for a `???`)
            found[option] = own
    if not found:
        return None
    open_options = [option for option, own in found.items() if OmegaConf.is_missing(own, word)]
    keys = {*OmegaConf.select(config, section)}
    options = sorted(open_options or found, key=lambda option: -len(keys & {*found[option]}))
    also = (
        f" ({', '.join(options[1:])} also {'has' if len(options) == 2 else 'have'} it)"
        if options[1:]
        else ""
    )
    is_typed = any(key_of(typed) == group for typed in config.hydra.overrides.task)
    remedy = f"add {group}={options[0]}"
    if is_typed:
        remedy = f"replace {group}={chosen} by {group}={options[0]}"
    return f"{key}: {group}={chosen} has no such key; {remedy}{also}"


def _ending_in(node: DictConfig, key: str, path: str = "") -> list[str]:
    """Return the full keys whose last words are `key`, for people who forget the section."""
    found = []
    for name in (str(name) for name in node if name != "hydra"):
        full = f"{path}.{name}" if path else name
        child = None if OmegaConf.is_interpolation(node, name) else node._get_node(name)
        if full.endswith(f".{key}"):
            found.append(full)
        elif isinstance(child, DictConfig) and not child._is_none():
            found += _ending_in(child, key, full)
    return found


def _more_parameters(node: DictConfig) -> Sequence[str]:
    """Return all parameters of a node's target, including those that the config does not set."""
    if "_target_" not in node:
        return ()
    try:
        return list(annotations.parameters(locate(str(node["_target_"]))))
    except ConfigError:
        return ()


def _groups(loader: ConfigLoader, parent: str) -> list[str]:
    """Return all groups below one, such as `model` and `model/norm`, without Hydra's."""
    found = []
    for child in loader.get_group_options(parent, ObjectType.GROUP):
        group = f"{parent}/{child}" if parent else child
        if group != "hydra":
            found += [group, *_groups(loader, group)]
    return found


def hydra_message(error: Exception) -> str:
    """Return Hydra's message in one line, without its advice."""
    if isinstance(error, UnicodeDecodeError):
        frames = (frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__))
        files = [str(each["full_path"]) for each in frames if "full_path" in each]
        return f"{(files or ['a configuration file'])[-1]}: is not UTF-8 text ({error.reason}); write it in UTF-8"
    lines = f"{error}\n{error.__cause__ or ''}".splitlines()
    kept = [line.strip() for line in lines if not ADVICE.match(line)]
    return "; ".join(dict.fromkeys(line for line in kept if not line.startswith("provider=")))
