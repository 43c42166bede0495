"""Composition of a command with Hydra: from overrides to a tree that can be checked."""

from collections.abc import Callable, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from llm.config.base import Command
from llm.config.budget import give_one_budget
from llm.config.check import check
from llm.config.composed import Composed
from llm.config.errors import ConfigError, collecting, key_of_line, raise_all
from llm.config.explanation import hydra_message, wrong_overrides
from llm.config.loader import HYDRA_ERRORS, Loader
from llm.config.option_advice import about_options
from llm.config.overrides import differing_words, key_of
from llm.config.resolvers import resolve_composition


def compose(
    loader: Loader, name: str, overrides: Sequence[str], *, flags: Sequence[str] = ()
) -> Composed:
    """Compose a command with `load_tree` and `composed`."""
    return composed(load_tree(loader, name, overrides), overrides, flags=flags)


def load_tree(
    loader: Loader, name: str, overrides: Sequence[str], *, is_sweep: bool = False
) -> DictConfig:
    """Compose a tree that still contains Hydra's own section. The overrides of a sweep may have several values.

    Raises:
        ConfigError: Hydra cannot compose it; one line for each wrong override.
    """
    mode = RunMode.MULTIRUN if is_sweep else RunMode.RUN
    try:
        return loader.load_configuration(name, list(overrides), run_mode=mode)
    except HYDRA_ERRORS as error:
        wrong = wrong_overrides(loader, name, overrides, is_sweep=is_sweep)
        if wrong.problems:
            raise wrong from error
        pairs = [(key, value) for key, _, value in (word.partition("=") for word in overrides)]
        files = [own.file for own in loader.own_options(pairs)]
        read = f"; read from {', '.join(files)}" if files else ""
        raise ConfigError(f"{hydra_message(error)}{read}") from error


def composed(
    config: DictConfig, overrides: Sequence[str], *, flags: Sequence[str] = ()
) -> Composed:
    """Return a tree of `load_tree` without Hydra's own section, as a `Composed`."""
    hydra: Any = config.hydra
    HydraConfig.instance().set_config(config)  # for values that refer to `${hydra:…}`
    directory, choices = str(hydra.run.dir), chosen_options(hydra)
    config = config.copy()
    with open_dict(config):
        del config["hydra"]
    give_one_budget(config, overrides)
    return Composed(resolve_composition(config), list(overrides), choices, directory, flags)


def check_points(
    compose_point: Callable[[Sequence[str]], Command], jobs: Sequence[Sequence[str]]
) -> list[Command]:
    """Compose and check every point of a sweep before the first one starts.

    Raises:
        ConfigError: all problems. A line that does not concern all points begins with the overrides of its point.
    """
    labels = [" ".join(words) for words in differing_words(jobs)]
    found: dict[str, list[str]] = {}
    points = []
    for label, job in zip(labels, jobs, strict=True):
        try:
            points.append(compose_point(job))
        except ConfigError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(label)
    lines = []
    for problem, at in found.items():
        everywhere = len(at) == len(jobs)
        lines += [problem] if everywhere else [f"{label} | {problem}" for label in at]
    raise_all(lines)
    return points


def check_composed(loader: Loader, point: Composed, *, found: Sequence[str] = ()) -> Any:
    """Check a command and return it, ready to run.

    Args:
        loader: the loader that composed it.
        point: the composed command.
        found: problems that are already known, one line for each key.

    Raises:
        ConfigError: all problems, each with the user's file that sets its key.
    """
    problems: list[str] = []
    with collecting(problems):
        command = check(point)
        if not found:
            return command
    known = tuple({f"{key_of_line(line)}: " for line in found})
    ends = tuple(found)  # a constructor may report the same problem, after the key of its section
    others = (x for x in problems if not (x.startswith(known) or x.endswith(ends)))
    lines = _about_deletions([*found, *others], point.overrides)
    lines = about_options(lines, point, loader)
    lines = _about_presets(lines, point, loader)
    typed = {key_of(word) for word in point.overrides}
    options = list(loader.own_options(point.choices.items()))
    with_files = []
    for line in lines:
        key = key_of_line(line)
        files = [each.file for each in options if key not in typed and each.sets(key)]
        with_files.append(f"{line} (set in {files[-1]})" if files else line)
    raise ConfigError(*with_files)


def _about_deletions(lines: list[str], overrides: Sequence[str]) -> list[str]:
    """Return the problems, with one line instead of all those that deleting a key causes (`~model`)."""
    for word in overrides:
        key = key_of(word)
        others = [
            line
            for line in lines
            if not line.startswith(f"{key}: is required and missing")
            and f"key '{key}' not found" not in line
            and f"key '{key}." not in line
        ]
        if word.startswith("~") and others != lines:
            lines = [f"{word}: {key} is needed here; leave {word} out", *others]
    return lines


def _about_presets(lines: Sequence[str], point: Composed, loader: Loader) -> list[str]:
    """Return the problems, with one line for an option such as `model/attention=lstm` that its preset does not suit.

    The preset sets keys for other options of the group, and may refer to theirs. The user typed none of these keys.
    """
    kept, typed = [*lines], {key_of(word) for word in point.overrides}
    for group, option in point.choices.items():
        preset, slash, _ = group.rpartition("/")
        section = group.replace("/", ".")
        if not (slash and section in typed):
            continue
        unknown = [
            key.removeprefix(f"{section}.")
            for key in map(key_of_line, (line for line in lines if ": no such key; " in line))
            if key.startswith(f"{section}.") and key not in typed
        ]
        if not unknown:
            continue
        is_preset = option in loader.get_group_options(preset)
        remedy = (
            f"{preset}={option}, to which other options can be added"
            if is_preset
            else f"another {group}="
        )
        gone = (*(f"{section}.{key}: no such key; " for key in unknown), f"{group}: ")
        missing = f"Interpolation key '{section}."
        kept = [x for x in kept if not (x.startswith(gone) or missing in x)]
        kept.append(
            f"{group}={option}: has no {', '.join(unknown)}, which {preset}={point.choices.get(preset)} sets; use "
            f"{remedy}"
        )
    return kept


def launched_point(config: DictConfig) -> Composed:
    """Return the job that one of Hydra's launchers has composed, as a `Composed`."""
    hydra: Any = HydraConfig.get()
    words = list(hydra.overrides.task)
    give_one_budget(config, words)
    return Composed(resolve_composition(config), words, chosen_options(hydra), str(hydra.run.dir))


def chosen_options(hydra: Any) -> dict[str, str | None]:
    """Return the chosen option of each group, except Hydra's groups.

    Args:
        hydra: Hydra's own section of a composed tree.
    """
    groups = hydra.runtime.choices.items()
    return {group: option for group, option in groups if not group.startswith("hydra/")}


def requests_sweep(loader: Loader, name: str, overrides: Sequence[str]) -> bool:
    """Return whether overrides have several values and the configuration sets `hydra.mode`, so `-m` is not needed."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        if not any(each.is_sweep_override() for each in parsed):
            return False
        config = loader.load_configuration(
            name, list(overrides), run_mode=RunMode.MULTIRUN, validate_sweep_overrides=False
        )
    except HYDRA_ERRORS:
        return False  # composing it later reports what is wrong
    return config.hydra.mode == RunMode.MULTIRUN


def sweep_jobs(loader: Loader, master: DictConfig, overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of every job of a sweep; empty if the sweeper chooses them while it runs.

    Raises:
        ConfigError: the values of a key cannot be read.
    """
    sweeper = master.hydra.sweeper
    if not sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        return []
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=loader)
    try:
        parsed = parser.parse_overrides([*params, *overrides])
        ours = [override for override in parsed if not override.is_hydra_override()]
        hydras = [str(override.input_line) for override in parsed if override.is_hydra_override()]
        return [[*job, *hydras] for job in BasicSweeper.split_arguments(ours, None)[0]]
    except HYDRA_ERRORS as error:
        raise ConfigError(hydra_message(error)) from error


def fixed_overrides(loader: Loader, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that are the same for all jobs of a sweep."""
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    return [str(each.input_line) for each in parsed if not each.is_sweep_override()]
