"""What is wrong with a command line that Hydra cannot compose, in a line for each word.

Hydra's own messages advise to prefix a key with `+`, which turns every misspelt key into a new one. So the overrides
are compared one by one with the groups and keys that exist.
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
from llm.config.overrides import RENAMED, key_of

# ValueError is what Hydra raises of a group that is set to null, and of a file that is not UTF-8.
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
ADVICE = re.compile(r"^(To append|See https|Config search path|Set the env|\s*$)")


def override_problems(
    loader: ConfigLoader, name: str, overrides: Sequence[str], *, is_sweep: bool = False
) -> Iterator[str]:
    """Yield a line for each override that is wrong by itself.

    Args:
        loader: could not compose them.
        name: of the primary config.
        overrides: the words of the command line.
        is_sweep: whether they may name several values.
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
        elif override.key_or_group in groups or _is_hydras(loader, override.key_or_group):
            lines = list(_wrong_option(loader, override))
            yield from lines
            choices += [] if lines else [word]
        elif "/" in override.key_or_group:
            yield f"{override.key_or_group}: no such group; {suggestion(override.key_or_group, groups)}"
        elif not override.is_hydra_override():
            keys.append(override)
    yield from _groupless(loader, name, choices)
    yield from _wrong_keys(loader, name, choices, keys, groups)


def _groupless(loader: ConfigLoader, name: str, choices: Sequence[str]) -> Iterator[str]:
    """Options of groups from which the command chooses none."""
    config = loader.load_configuration(name, [], run_mode=RunMode.RUN)
    for word in choices:
        group = word.partition("=")[0]
        if word.startswith(("+", "~")) or "@" in group or group in config.hydra.runtime.choices:
            continue
        node = config.get(group)
        if isinstance(node, DictConfig):
            yield f"{word}: this command has single keys of {group}, not its options; {_keys_for(loader, word, node)}"
        else:
            yield f"{word}: this command chooses nothing from {group}; leave it out"


def _keys_for(loader: ConfigLoader, word: str, node: DictConfig) -> str:
    """The single keys to set in place of an option, as far as a command has them, or those that it has."""
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
    """What an option of a group says itself, without the options that it builds on."""
    result = loader.repository.load_config(f"{group}/{option}")  # pyright: ignore[reportAttributeAccessIssue]
    return OmegaConf.create() if result is None else result.config


def _written(value: Any) -> str:
    """A plain value as a command line has it."""
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _is_hydras(loader: ConfigLoader, group: str) -> bool:
    """Whether a group is one of Hydra's own, such as `hydra/launcher`."""
    return group.startswith("hydra/") and bool(loader.get_group_options(group, ObjectType.CONFIG))


def _wrong_option(loader: ConfigLoader, override: Override) -> Iterator[str]:
    """Options that their group does not have."""
    group = override.key_or_group
    options = loader.get_group_options(group, ObjectType.CONFIG)
    chosen = override.value()
    if override.is_sweep_override():
        chosen = list(override.sweep_string_iterator())
    for option in chosen if isinstance(chosen, list) else [chosen]:
        if option is None:
            there = "choose one of" if options else "it has no options; leave it out"
            yield f"{group}=null: is not an option; {there} {', '.join(options)}".rstrip()
        elif isinstance(option, str | int | float) and str(option) not in options:
            new, guess = RENAMED.get(f"{group}={option}"), nearest(str(option), options)
            there = f"(there are {', '.join(options)})"
            hint = f"did you mean {guess}? {there}" if guess else there.strip("()")
            hint = f"it is called {new} now" if new else hint
            yield f"{group}={option}: no such option; {hint}"


def _wrong_keys(
    loader: ConfigLoader,
    name: str,
    choices: list[str],
    keys: Sequence[Override],
    groups: Sequence[str],
) -> Iterator[str]:
    """Keys that are not in what the rest of the command line composes."""
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
    """The first word of a dotted key that leads nowhere."""
    node, path = config, ""
    typed = {key_of(each): each for each in config.hydra.overrides.task}
    for word in key.split("."):
        if node is None:
            cure = f"replace {typed[path]} by another {path}=…" if path in typed else ""
            yield f"{key}: {path} is null here; {cure or f'choose one first with {path}=…'}"
            return
        if isinstance(node, DictConfig) and word not in node.keys():  # noqa: SIM118  (`in` denies a `???`)
            yield f"{key}: {_remedy(config, node, path=path, word=word, key=key, groups=groups)}"
            return
        path = f"{path}.{word}" if path else word
        node = OmegaConf.select(config, path, throw_on_missing=False)


def _remedy(
    config: DictConfig, node: DictConfig, *, path: str, word: str, key: str, groups: Sequence[str]
) -> str:
    """Return what to write instead of `word` of `key`, which is not in `node` at `path`."""
    if path:
        if word in _more_parameters(node):
            return f"is not written out there; add it with +{key}=…"
        return f"no such key; {suggestion(word, map(str, node), f'{path}.')}"
    if key in RENAMED:
        return f"no such key; it is called {RENAMED[key]} now"
    elsewhere = _ending_in(config, key)
    if elsewhere:
        return f"no such key here; did you mean {' or '.join(elsewhere)}?"
    roots = {str(group).partition("/")[0] for group in config.hydra.runtime.choices}
    own = {group for group in groups if group.partition("/")[0] in roots}
    names = {str(name) for name in config if name not in ("hydra", "_target_")} | own
    return f"no such group or key; {suggestion(word, names)}"


def _of_other_options(loader: ConfigLoader, config: DictConfig, key: str) -> str | None:
    """The line about a key that other options of its group have: those that need it set before the others.

    The first one named is the one that has most in common with what is chosen.
    """
    section, _, word = key.rpartition(".")
    group = section.replace(".", "/")
    chosen = config.hydra.runtime.choices.get(group)
    found: dict[str, DictConfig] = {}
    for option in loader.get_group_options(group, ObjectType.CONFIG) if chosen else ():
        own = _loaded(loader, group, option)
        if word in own.keys():  # noqa: SIM118  (`in` denies a `???`)
            found[option] = own
    is_open = {option: own for option, own in found.items() if OmegaConf.is_missing(own, word)}
    if not found:
        return None
    here = {*OmegaConf.select(config, section)}
    options = sorted(is_open or found, key=lambda option: -len(here & {*found[option]}))
    also = f" ({', '.join(options[1:])} have it too)" if options[1:] else ""
    is_typed = any(key_of(typed) == group for typed in config.hydra.overrides.task)
    cure = f"add {group}={options[0]}"
    if is_typed:
        cure = f"replace {group}={chosen} by {group}={options[0]}"
    return f"{key}: {group}={chosen} has no such key; {cure}{also}"


def _ending_in(node: DictConfig, key: str, path: str = "") -> list[str]:
    """Full keys whose last words are `key`: people forget the section."""
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
    """Parameters of a node's target, which may be added though the config leaves them at their defaults."""
    if "_target_" not in node:
        return ()
    try:
        return list(annotations.parameters(locate(str(node["_target_"]))))
    except ConfigError:
        return ()


def _groups(loader: ConfigLoader, parent: str) -> list[str]:
    """All groups below one, `model` and `model/norm` alike, without Hydra's."""
    found = []
    for child in loader.get_group_options(parent, ObjectType.GROUP):
        group = f"{parent}/{child}" if parent else child
        if group != "hydra":
            found += [group, *_groups(loader, group)]
    return found


def told_by_hydra(error: Exception) -> str:
    """Return Hydra's message in one line, without its advice."""
    if isinstance(error, UnicodeDecodeError):
        frames = (frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__))
        files = [str(each["full_path"]) for each in frames if "full_path" in each]
        return f"{(files or ['a configuration file'])[-1]}: is not UTF-8 text ({error.reason}); write it in UTF-8"
    told = f"{error}\n{error.__cause__ or ''}".splitlines()
    kept = [line.strip() for line in told if not ADVICE.match(line)]
    return "; ".join(dict.fromkeys(line for line in kept if not line.startswith("provider=")))
