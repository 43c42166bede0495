"""Messages about a command line that Hydra cannot compose, one line for each wrong word.

Hydra suggests to prefix a key with `+`, which makes a misspelt key a new one. So each override is compared with the
existing groups and keys.
"""

import json
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from llm.config import annotations
from llm.config.allowlist import locate
from llm.config.errors import ConfigError, nearest, suggestion
from llm.config.fingerprint import is_among
from llm.config.hydra_section import SWEEPS
from llm.config.loader import HYDRA_ERRORS, Loader
from llm.config.overrides import RENAMED, key_of

ADVICE = re.compile(r"^(To append|See https|Config search path|Set the env|\s*$)")
MOST_GUESSES = 3


class WrongOverridesError(ConfigError):
    """Overrides that Hydra cannot compose.

    Attributes:
        others: the other overrides, without those of a group whose option does not exist.
        beginnings: prefixes of the problem lines about `others`, to select these lines.
    """

    others: Sequence[str] = ()
    beginnings: tuple[str, ...] = ()


def wrong_overrides(
    loader: Loader, name: str, overrides: Sequence[str], *, is_sweep: bool = False
) -> WrongOverridesError:
    """Return an error with a line for each wrong override."""
    groups = _groups(loader, "")
    lines: list[str] = []
    choices: list[str] = []
    keys: dict[str, Override] = {}
    sections: tuple[str, ...] = ()  # of groups whose option is wrong; an experiment may set any key
    for word in overrides:
        if problem := _unreadable(word):
            lines.append(problem)
            continue
        override = OverridesParser.create(loader).parse_overrides([word])[0]
        key = override.key_or_group
        is_hydras = key.startswith("hydra/") and bool(loader.get_group_options(key))
        is_group = key in groups or is_hydras
        if found := list(
            _wrong_word(loader, override, groups, is_group=is_group, is_sweep=is_sweep)
        ):
            lines += found
            section = "" if key == "experiment" else f"{key.replace('/', '.')}."
            sections += (section,) if is_group else ()
        elif is_group:
            choices.append(word)
        elif not override.is_hydra_override():
            keys[word] = override
    lines += _unused_groups(loader, name, choices)
    lines += _groups_of_other_presets(loader, name, choices)
    keys = {word: each for word, each in keys.items() if not key_of(word).startswith(sections)}
    wrong_keys = dict(_wrong_keys(loader, name, choices, keys, groups))
    error = WrongOverridesError(*dict.fromkeys([*lines, *wrong_keys.values()]))
    kept = [word for word in keys if word not in wrong_keys]
    error.others = [*choices, *kept]
    # Options must fit one another. If one is wrong, it may cause the problems of the others, so these are not reported.
    fitting = [] if sections else choices
    error.beginnings = (
        *(f"{key_of(word)}{end}" for word in kept for end in (": ", "=", ".", "[")),
        *(f"{key_of(word)}: " for word in fitting),
    )
    return error


def _unreadable(word: str) -> str | None:
    """Return why a word is not an override of Hydra's grammar; None if it is one."""
    key, equals, _ = word.partition("=")
    if not key:
        return f"{word}: has no key; write key=value"
    try:
        OverridesParser.create().parse_override(word)
    except HYDRA_ERRORS:
        if not equals:
            return f"{word}: has no value; write {word}=VALUE"
        return f"{word}: cannot be read; quote the value, twice for the shell: 'key=\"value\"'"
    return None


def _wrong_word(
    loader: Loader, override: Override, groups: Sequence[str], *, is_group: bool, is_sweep: bool
) -> Iterator[str]:
    """Yield what is wrong with an override, whatever the other overrides are."""
    word, key = str(override.input_line), override.key_or_group
    if override.is_sweep_override() and not is_sweep:
        one = "" if is_group else f", or write one list: {override.get_key_element()}=[…]"
        yield f"{word}: several values; add -m to run each{one}"
    elif is_group:
        yield from _wrong_option(loader, override)
    elif is_among(key_of(word), SWEEPS) and not is_sweep:
        yield f"{key_of(word)}: only a sweep uses it; add -m, or leave it out"
    elif "/" in key:
        yield f"{key}: no such group; {suggestion(key, groups)}"


def _unused_groups(loader: Loader, name: str, choices: Sequence[str]) -> Iterator[str]:
    """Yield a line for each option of a group that the command does not use, or deletes without having it."""
    try:
        config = loader.load_configuration(name, [], run_mode=RunMode.RUN)
    except HYDRA_ERRORS:  # the primary config is wrong: Hydra's message says so
        return
    chosen = config.hydra.runtime.choices
    for word in choices:
        group, _, option = word.partition("=")
        deleted = group.removeprefix("~")
        if group != deleted and option and chosen.get(deleted, option) != option:
            yield f"{word}: the option of {deleted} is {chosen[deleted]}; use {group} to delete it"
        if word.startswith("+") and chosen.get(added := group.lstrip("+")) is not None:
            yield f"{word}: {added} has an option already; use {added}={option} to replace it"
        outer = group.partition("/")[0]
        if word.startswith(("+", "~")) or "@" in group or chosen.keys() & {group, outer}:
            continue
        node = config.get(group)
        if isinstance(node, DictConfig):
            yield f"{word}: this command has keys of {group}, but not its options; {_keys_for(loader, word, node)}"
        else:
            yield f"{word}: this command does not use {group}; leave it out"


def _groups_of_other_presets(loader: Loader, name: str, choices: Sequence[str]) -> Iterator[str]:
    """Yield a line for each option of a group inside another, such as `model/layers`, that the chosen preset lacks."""
    inner = [word for word in choices if "/" in word.partition("=")[0] and word[0] not in "+~"]
    outer = [word for word in choices if word not in inner]
    try:
        mode = RunMode.MULTIRUN if any("," in word for word in outer) else RunMode.RUN
        chosen = loader.load_configuration(name, outer, run_mode=mode).hydra.runtime.choices
    except HYDRA_ERRORS:
        return
    for word in inner:
        group = word.partition("=")[0]
        preset = group.partition("/")[0]
        if "@" not in group and group not in chosen and preset in chosen:
            yield f"{word}: {preset}={chosen[preset]} has no {group}; leave it out"


def _keys_for(loader: Loader, word: str, node: DictConfig) -> str:
    """Return the keys to set instead of an option: those that differ, otherwise all of the command."""
    group, _, option = word.partition("=")
    own = _loaded(loader, group, option)
    keys = [key for key in node if key != "_target_"]
    values = {key: own[key] for key in keys if key in own and not OmegaConf.is_missing(own, key)}
    set_keys = [
        f"{group}.{key}={_written(value)}" for key, value in values.items() if value != node[key]
    ]
    return f"set {' '.join(set_keys) or ' or '.join(f'{group}.{key}=…' for key in keys)}"


def _loaded(loader: Loader, group: str, option: str) -> Any:
    """Return an option's own values, without the options in its defaults."""
    result = loader.repository.load_config(f"{group}/{option}")
    return OmegaConf.create() if result is None else result.config


def _written(value: Any) -> str:
    """Return a plain value as written on a command line."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _wrong_option(loader: Loader, override: Override) -> Iterator[str]:
    """Yield a line for each option that the group does not have."""
    group = override.key_or_group
    options = loader.get_group_options(group)
    chosen = override.value()
    if override.is_sweep_override():
        chosen = list(override.sweep_string_iterator())
    for option in chosen if isinstance(chosen, list) else [chosen]:
        if option is None and not override.is_delete():
            remedy = "choose one of" if options else "it has no options; leave it out"
            yield f"{group}=null: is not an option; {remedy} {', '.join(options)}".rstrip()
        elif isinstance(option, str | int | float) and option != "" and str(option) not in options:
            new, guess = RENAMED.get(f"{group}={option}"), nearest(str(option), options)
            listed = f"there are {', '.join(options)}"
            hint = f"did you mean {guess}? ({listed})" if guess else listed
            hint = f"it is now called {new}" if new else hint
            yield f"{group}={option}: no such option; {hint}"


def _wrong_keys(
    loader: Loader,
    name: str,
    choices: list[str],
    keys: Mapping[str, Override],
    groups: Sequence[str],
) -> Iterator[tuple[str, str]]:
    """Yield each word whose key is not in the tree of the chosen options, with a line about it."""
    try:
        mode = RunMode.MULTIRUN if any("," in choice for choice in choices) else RunMode.RUN
        config = loader.load_configuration(name, choices, run_mode=mode)
    except HYDRA_ERRORS:
        return
    for word, override in keys.items():
        key, line = override.key_or_group, None
        if not (override.is_add() or override.is_force_add()):
            line = _wrong_key(config, key, groups)
        if line and ": no such key;" in line:
            line = _of_other_options(loader, config, key) or line
        if line is None and override.is_delete() and override.value() not in (None, ""):
            current = OmegaConf.select(config, key)
            line = f"{word}: {key} is {_written(current)}; use ~{key} to delete it"
        if line is not None:
            yield word, line


def _wrong_key(config: DictConfig, key: str, groups: Sequence[str]) -> str | None:
    """Return a line about the first part of a dotted key that does not exist; None if all do."""
    node, path = config, ""
    typed = {key_of(each): each for each in config.hydra.overrides.task}
    for word in key.split("."):
        if node is None:
            remedy = f"replace {typed[path]} by another {path}=…" if path in typed else ""
            return f"{key}: {path} is null here; {remedy or f'choose one first with {path}=…'}"
        if isinstance(node, DictConfig) and word not in node.keys():  # noqa: SIM118  (`in` is False for a `???`)
            if path and word in _more_parameters(node):
                return f"{key}: is not in the config, but can be added; use +{key}=…"
            if path:
                names = [str(name) for name in node if not str(name).startswith("_")]
                return f"{key}: no such key; {suggestion(word, names, f'{path}.')}"
            return f"{key}: {_no_such_root(config, word, key, groups)}"
        if not isinstance(node, DictConfig | ListConfig):
            return f"{key}: {path} is a value without keys; set {path}=…"
        path = f"{path}.{word}" if path else word
        node = OmegaConf.select(config, path, throw_on_missing=False)
    return None


def _no_such_root(config: DictConfig, word: str, key: str, groups: Sequence[str]) -> str:
    """Return what is wrong with a key whose first part is not at the root of the tree."""
    if key in RENAMED:
        return f"no such key; it is now called {RENAMED[key]}"
    elsewhere = [] if key in ("_target_", "_partial_") else _ending_in(config, key)
    if elsewhere:
        guesses = sorted(elsewhere, key=lambda each: each.count("."))[:MOST_GUESSES]
        return f"no such key here; did you mean {' or '.join(guesses)}?"
    roots = {str(group).partition("/")[0] for group in config.hydra.runtime.choices}
    own = {group for group in groups if group.partition("/")[0] in roots}
    names = {str(name) for name in config if name not in ("hydra", "_target_")}
    return f"no such group or key; {suggestion(word, names | own if nearest(word, own) else names)}"


def _of_other_options(loader: Loader, config: DictConfig, key: str) -> str | None:
    """Return the line about a key that only other options of its group have; None if no option has it.

    It names the options that leave the key open (`???`), otherwise all that have it: first the one with the most keys
    in common with the chosen option.
    """
    section, _, word = key.rpartition(".")
    group = section.replace(".", "/")
    chosen = config.hydra.runtime.choices.get(group)
    found: dict[str, DictConfig] = {}
    for option in loader.get_group_options(group) if chosen else ():
        own = _loaded(loader, group, option)
        if word in own.keys():  # noqa: SIM118  (`in` is False for a `???`)
            found[option] = own
    if not found:
        return None
    open_options = [option for option, own in found.items() if OmegaConf.is_missing(own, word)]
    keys = {*OmegaConf.select(config, section)}
    options = sorted(open_options or found, key=lambda option: -len(keys & {*found[option]}))
    first, *more = options
    have = "has" if len(more) == 1 else "have"
    also = f" ({', '.join(more)} also {have} it)" if more else ""
    is_typed = group in map(key_of, config.hydra.overrides.task)
    remedy = f"replace {group}={chosen} by" if is_typed else "add"
    return f"{key}: {group}={chosen} has no such key; {remedy} {group}={first}{also}"


def _ending_in(node: DictConfig, key: str, path: str = "") -> list[str]:
    """Return the full keys that end in `key`: the user may have forgotten the section."""
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
    """Return all parameters of a node's target."""
    if "_target_" not in node:
        return ()
    try:
        return list(annotations.parameters(locate(str(node["_target_"]))))
    except ConfigError:
        return ()


def _groups(loader: Loader, parent: str) -> list[str]:
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
