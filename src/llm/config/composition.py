"""Composing with Hydra, and saying in one line what Hydra could not compose.

Hydra's own messages advise to prefix a key with `+`, which turns every misspelt key into a new one.
So when it refuses, the overrides are looked at one by one against the groups and keys that there are.
"""

import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from llm.config import annotations
from llm.config.allowlist import locate
from llm.config.budget import give_one_budget
from llm.config.check import check
from llm.config.errors import ConfigError, nearest, suggestion
from llm.config.loader import Loader, OwnOption
from llm.config.overrides import differing_words, key_of
from llm.config.point import Point
from llm.config.resolvers import settle

# ValueError is what Hydra raises of a group that is set to null, and of a file that is not UTF-8.
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
ADVICE = re.compile(r"^(To append|See https|Config search path|Set the env|\s*$)")


def compose(loader: ConfigLoader, name: str, overrides: Sequence[str]) -> DictConfig:
    """The composed tree, without Hydra's own section.

    Raises:
        ConfigError: Hydra cannot compose it; one line for each override at fault.
    """
    try:
        config = loader.load_configuration(name, list(overrides), run_mode=RunMode.RUN)
    except HYDRA_ERRORS as error:
        lines = list(dict.fromkeys(_explain(loader, name, overrides)))
        pairs = [(key, value) for key, _, value in (word.partition("=") for word in overrides)]
        files = [own.file for own in _own_options(loader, pairs)]
        read = f"; read from {', '.join(files)}" if files else ""
        raise ConfigError(*(lines or [f"{_told_by_hydra(error)}{read}"])) from error
    HydraConfig.instance().set_config(config)  # for values that ask for `${hydra:…}`
    with open_dict(config):
        del config["hydra"]
    return config


def check_points(
    loader: ConfigLoader,
    name: str,
    overrides: Sequence[str],
    multirun: bool,
    *,
    first: Callable[[DictConfig], None] = lambda config: None,
) -> list[Point]:
    """Compose and check what is going to run, every point of it before the first one starts.

    Args:
        loader: Finds configs.
        name: The config to compose.
        overrides: The words of the command line.
        multirun: Whether they may name several points.
        first: Checks what can be told before the parts of a point are imported, which takes seconds.

    Returns:
        What each job is; none where the sweeper chooses them as it goes.

    Raises:
        ConfigError: with all problems of all points; a line that does not concern all of them begins
            with the overrides of its point.
    """
    jobs = points(loader, name, overrides) if multirun else [list(overrides)]
    if not jobs:
        point(loader, name, fixed(loader, overrides))
    labels = [" ".join(words) for words in differing_words(jobs)]
    found: dict[str, list[str]] = {}
    composed = []
    for label, job in zip(labels, jobs, strict=True):
        try:
            composed.append(point(loader, name, job, first=first))
        except ConfigError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(label)
    lines = []
    for problem, at in found.items():
        everywhere = len(at) == len(jobs)
        lines += [problem] if everywhere else [f"{label} | {problem}" for label in at]
    if lines:
        raise ConfigError(*lines)
    return composed


def point(
    loader: ConfigLoader,
    name: str,
    overrides: Sequence[str],
    *,
    first: Callable[[DictConfig], None] = lambda config: None,
) -> Point:
    """Compose and check one job.

    Raises:
        ConfigError: with all its problems.
    """
    config = compose(loader, name, overrides)
    try:
        give_one_budget(config, overrides)
        first(config)
        check(config)
    except ConfigError as error:
        raise ConfigError(*_with_files(loader, error.problems, overrides)) from error
    return _point(overrides, config)


def _with_files(
    loader: ConfigLoader, problems: Sequence[str], overrides: Sequence[str]
) -> Iterator[str]:
    """The problems of a configuration, each with the user's own file that sets its key, unless a word does."""
    typed = {key_of(word) for word in overrides}
    options = list(_own_options(loader, chosen_options().items()))
    for problem in problems:
        key = problem.partition(": ")[0]
        files = [each.file for each in options if key not in typed and each.sets(key)]
        yield f"{problem} (set in {files[-1]})" if files else problem


def _own_options(
    loader: ConfigLoader, choices: Iterable[tuple[str, str | None]]
) -> Iterator[OwnOption]:
    """Of chosen options, by group, those that are files of the user's own."""
    for group, option in choices:
        if option and isinstance(loader, Loader):
            own = None
            # A file that cannot be read has its own error.
            with suppress(*HYDRA_ERRORS, ConfigError):
                own = loader.own_option(group.partition("@")[0], option)
            yield from [own] if own is not None else ()


def launched(config: DictConfig) -> Point:
    """What a launcher of Hydra's has composed and calls a job with."""
    return _point(HydraConfig.get().overrides.task, config)


def _point(overrides: Sequence[str], config: DictConfig) -> Point:
    """What was composed last."""
    hydra: Any = HydraConfig.get()
    return Point(list(overrides), settle(config), chosen_options(), str(hydra.run.dir))


def chosen_options() -> dict[str, str | None]:
    """The option chosen of each group but Hydra's own, in what was composed last."""
    groups = HydraConfig.get().runtime.choices.items()
    return {group: option for group, option in groups if not group.startswith("hydra/")}


def is_multirun(loader: ConfigLoader, name: str, overrides: Sequence[str]) -> bool:
    """Whether the configuration itself asks for a sweep, as a saved one does, without `-m`."""
    try:
        config = loader.load_configuration(
            name, list(overrides), run_mode=RunMode.MULTIRUN, validate_sweep_overrides=False
        )
    except HYDRA_ERRORS:
        return False  # composing it tells what is wrong
    return config.hydra.mode == RunMode.MULTIRUN


def points(loader: ConfigLoader, name: str, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a sweep; none where the sweeper chooses them as it goes.

    Raises:
        ConfigError: the sweep itself cannot be composed.
    """
    try:
        config = loader.load_configuration(name, list(overrides), run_mode=RunMode.MULTIRUN)
        sweeper = config.hydra.sweeper
        if not sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
            return []
        fixed = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        parser = OverridesParser.create(config_loader=loader)
        parsed = parser.parse_overrides([*fixed, *overrides])
        ours = [override for override in parsed if not override.is_hydra_override()]
        hydras = [str(override.input_line) for override in parsed if override.is_hydra_override()]
        return [[*job, *hydras] for job in BasicSweeper.split_arguments(ours, None)[0]]
    except HYDRA_ERRORS as error:
        lines = list(dict.fromkeys(_explain(loader, name, overrides, multirun=True)))
        raise ConfigError(*(lines or [_told_by_hydra(error)])) from error


def fixed(loader: ConfigLoader, overrides: Sequence[str]) -> list[str]:
    """The words of a sweep that are the same for all its jobs."""
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    return [str(each.input_line) for each in parsed if not each.is_sweep_override()]


def _explain(
    loader: ConfigLoader, name: str, overrides: Sequence[str], multirun: bool = False
) -> Iterator[str]:
    """One line for each override that is wrong by itself."""
    groups = _groups(loader, "")
    choices, keys = [], []
    for word in overrides:
        try:
            override = OverridesParser.create(loader).parse_overrides([word])[0]
        except HYDRA_ERRORS:
            yield f"{word}: cannot be read; quote the value, twice for the shell: 'key=\"value\"'"
            continue
        if override.is_sweep_override() and not multirun:
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
            guess = nearest(str(option), options)
            there = f"(there are {', '.join(options)})"
            hint = f"did you mean {guess}? {there}" if guess else there.strip("()")
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
            yield f"{key}: {_remedy(config, node, path, word, key, groups)}"
            return
        path = f"{path}.{word}" if path else word
        node = OmegaConf.select(config, path, throw_on_missing=False)


def _remedy(
    config: DictConfig, node: DictConfig, path: str, word: str, key: str, groups: Sequence[str]
) -> str:
    """What to write instead of a word that is not in `node`, which stands at `path`."""
    if path:
        if word in _more_parameters(node):
            return f"is not written out there; add it with +{key}=…"
        return f"no such key; {suggestion(word, map(str, node), f'{path}.')}"
    elsewhere = _ending_in(config, key)
    if elsewhere:
        return f"no such key here; did you mean {' or '.join(elsewhere)}?"
    roots = {str(group).partition("/")[0] for group in config.hydra.runtime.choices}
    own = {group for group in groups if group.partition("/")[0] in roots}
    names = {str(name) for name in config if name != "hydra"} | own
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


def _told_by_hydra(error: Exception) -> str:
    """Hydra's message in one line, without its advice."""
    if isinstance(error, UnicodeDecodeError):
        frames = (frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__))
        files = [str(each["full_path"]) for each in frames if "full_path" in each]
        return f"{(files or ['a configuration file'])[-1]}: is not UTF-8 text ({error.reason}); write it in UTF-8"
    told = f"{error}\n{error.__cause__ or ''}".splitlines()
    kept = [line.strip() for line in told if not ADVICE.match(line)]
    return "; ".join(dict.fromkeys(line for line in kept if not line.startswith("provider=")))
