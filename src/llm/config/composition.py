"""Composing a command with Hydra, once: from the words of a command line to a tree that can be checked."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from llm.config.base import Command
from llm.config.budget import give_one_budget
from llm.config.check import check
from llm.config.composed import Composed
from llm.config.errors import ConfigError
from llm.config.explanation import HYDRA_ERRORS, override_problems, told_by_hydra
from llm.config.loader import Loader, OwnOption
from llm.config.overrides import differing_words, key_of
from llm.config.resolvers import settle


def compose(loader: ConfigLoader, name: str, overrides: Sequence[str]) -> Composed:
    """Compose a command, once.

    Raises:
        ConfigError: Hydra cannot compose it; one line for each override at fault.
    """
    return composed(load_tree(loader, name, overrides), overrides)


def load_tree(
    loader: ConfigLoader, name: str, overrides: Sequence[str], *, is_sweep: bool = False
) -> DictConfig:
    """Let Hydra compose a tree, with its own section in it.

    Args:
        loader: finds configs.
        name: of the primary config.
        overrides: the words of the command line.
        is_sweep: whether they may name several values.

    Raises:
        ConfigError: Hydra cannot compose it; one line for each override at fault.
    """
    mode = RunMode.MULTIRUN if is_sweep else RunMode.RUN
    try:
        return loader.load_configuration(name, list(overrides), run_mode=mode)
    except HYDRA_ERRORS as error:
        lines = list(dict.fromkeys(override_problems(loader, name, overrides, is_sweep=is_sweep)))
        pairs = [(key, value) for key, _, value in (word.partition("=") for word in overrides)]
        files = [own.file for own in _own_options(loader, pairs)]
        read = f"; read from {', '.join(files)}" if files else ""
        raise ConfigError(*(lines or [f"{told_by_hydra(error)}{read}"])) from error


def composed(
    config: DictConfig, overrides: Sequence[str], *, flags: Sequence[str] = ()
) -> Composed:
    """Return what Hydra has composed, without its own section.

    Args:
        config: as of `load_tree`.
        overrides: the words that make it.
        flags: flags of the command line that it depends on.
    """
    hydra: Any = config.hydra
    HydraConfig.instance().set_config(config)  # for values that refer to `${hydra:…}`
    directory, choices = str(hydra.run.dir), chosen_options(hydra)
    config = config.copy()
    with open_dict(config):
        del config["hydra"]
    give_one_budget(config, overrides)
    return Composed(settle(config), list(overrides), choices, directory, flags)


def check_points(
    compose_point: Callable[[Sequence[str]], Command], jobs: Sequence[Sequence[str]]
) -> list[Command]:
    """Compose and check every point of a sweep before the first one starts.

    Args:
        compose_point: composes and checks one.
        jobs: the overrides of each.

    Raises:
        ConfigError: with all problems of all points; a line that does not concern all of them begins
            with the overrides of its point.
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
    if lines:
        raise ConfigError(*lines)
    return points


def check_composed(
    loader: ConfigLoader,
    point: Composed,
    *,
    first: Callable[[Composed], None] = lambda composed: None,
) -> Any:
    """Check a command and return it, ready to run.

    Args:
        loader: composed it.
        point: the command as it was composed.
        first: checks what can be checked before torch and the classes of the tree are imported, which takes
            seconds.

    Raises:
        ConfigError: with all its problems, each with the file of the user's own that sets its key.
    """
    try:
        first(point)
        return check(point)
    except ConfigError as error:
        raise ConfigError(*_with_files(loader, error.problems, point)) from error


def _with_files(loader: ConfigLoader, problems: Sequence[str], point: Composed) -> Iterator[str]:
    """Yield the problems of a configuration, each with the user's own file that sets its key, unless a word does."""
    typed = {key_of(word) for word in point.overrides}
    options = list(_own_options(loader, point.choices.items()))
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


def launched(config: DictConfig) -> Composed:
    """Return what a launcher of Hydra's has composed, for the job that it calls."""
    hydra: Any = HydraConfig.get()
    words = list(hydra.overrides.task)
    give_one_budget(config, words)
    return Composed(settle(config), words, chosen_options(hydra), str(hydra.run.dir))


def chosen_options(hydra: Any) -> dict[str, str | None]:
    """Return the option chosen of each group but Hydra's own.

    Args:
        hydra: Hydra's own section of a composed tree.
    """
    groups = hydra.runtime.choices.items()
    return {group: option for group, option in groups if not group.startswith("hydra/")}


def is_multirun(loader: ConfigLoader, name: str, overrides: Sequence[str]) -> bool:
    """Return whether a configuration that is no single run asks for a sweep itself, without `-m`."""
    try:
        config = loader.load_configuration(
            name, list(overrides), run_mode=RunMode.MULTIRUN, validate_sweep_overrides=False
        )
    except HYDRA_ERRORS:
        return False  # composing it says what is wrong
    return config.hydra.mode == RunMode.MULTIRUN


def sweep_jobs(
    loader: ConfigLoader, master: DictConfig, overrides: Sequence[str]
) -> list[list[str]]:
    """Return the overrides of every job of a sweep; none where the sweeper chooses them as it goes.

    Args:
        loader: composed it.
        master: the sweep, with Hydra's own section.
        overrides: the words of the command line.

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
        raise ConfigError(told_by_hydra(error)) from error


def fixed(loader: ConfigLoader, overrides: Sequence[str]) -> list[str]:
    """The words of a sweep that are the same for all its jobs."""
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    return [str(each.input_line) for each in parsed if not each.is_sweep_override()]
