"""`llm train -m`: a sweep, from its points to its table.

Hydra's launcher calls `llm.launch.sweep_job.job` for each point. The sweep's folder stores the outcome of each: the
same command again skips finished jobs, resumes interrupted ones and repeats failed ones.
"""

import logging
import math
import os
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llm import signals
from llm.comparison.table import compare
from llm.config.command_line import CommandLine
from llm.config.composed import Composed
from llm.config.composition import chosen_options
from llm.config.errors import ConfigError, collecting, raise_all
from llm.config.fingerprint import fingerprint
from llm.config.overrides import differing_words, is_hydras, key_of, unquoted
from llm.config.run_name import base_name, run_name
from llm.config.texts import quoted_text, split_at_commas
from llm.launch import gpu_pool, shutdown
from llm.launch.dashboard import show_sweep
from llm.launch.sweep_job import own_name, planned_job, write_job_file
from llm.planning.cost import vocabulary
from llm.planning.matching import match
from llm.runs import Run, display_path
from llm.sweeps import Sweep
from llm.terminal import shell
from llm.terminal.console import new_console
from llm.terminal.tables import open_console
from llm.training.dry_run import require_divisible, show_matched
from llm.training.preflight import require_same_configuration
from llm.training.trainer import TrainerSettings
from llm.training.training_config import TrainingConfig

CONSOLE = new_console()
# Launchers with several simultaneous jobs, in processes that end with this one.
POOLS = ("JoblibLauncher", "LocalLauncher")


def launch_sweep(
    line: CommandLine,
    points: Sequence[TrainingConfig],
    *,
    master: DictConfig,
    start: Callable[[Mapping[str, Any]], None],
) -> int:
    """Run a sweep until it is done or stopped, and print its table.

    Args:
        line: the command line.
        points: the points; empty if a sweeper chooses them while it runs.
        master: the composed sweep, with Hydra's own section.
        start: runs `job` for each point through Hydra, with changes to Hydra's section.

    Returns:
        The exit status: 0 if every job is done or running in another process; 143 after SIGTERM, 130 after another
            interruption, otherwise 1.

    Raises:
        RunningSweepError: another sweep with this name is running.
    """
    require_divisible(points)
    logging.getLogger("hydra_plugins").setLevel(logging.CRITICAL)  # failures are in the table
    sweep = begin_sweep(line, points, master)
    CONSOLE.print(f"sweep {sweep.name}\n  in {display_path(sweep.path)}", soft_wrap=True)
    status, message = 0, ""
    with show_sweep(sweep):
        try:
            run_all(sweep, master.hydra.launcher, start)
        except KeyboardInterrupt as stop:
            status = signals.status_of(signals.number_of(stop))
            message = "the sweep stopped; the same command resumes it"
        except Exception as error:  # of the launcher or the sweeper: a job's error is in the table
            (sweep.path / "launcher.err").write_text(traceback.format_exc(), "utf-8")
            status, message = 1, f"{type(error).__name__}: {error} (traceback in launcher.err)"
    table = compare(sweep.runs)
    table.write(sweep.path)
    console = open_console()
    console.print(table.render(console.width))
    files = f"{display_path(sweep.path)}/table.csv, table.md, loss.png"
    CONSOLE.print(f"{files}\n{message}".rstrip(), soft_wrap=True)
    return status or int(any(run.state not in ("done", "running") for run in sweep.runs))


def begin_sweep(line: CommandLine, points: Sequence[TrainingConfig], master: DictConfig) -> Sweep:
    """Write the folder of a sweep: its plan and job files. An earlier sweep is moved away."""
    words, flags = line.overrides, line.flags
    sweep = Sweep(sweep_folder(words, points, master))
    jobs = [planned_job(sweep, number, point.composed) for number, point in enumerate(points)]
    backup = sweep.begin(
        command=shell.command_line("llm", line.name, *flags, "-m", *words),
        job_command=line.name,
        flags=list(flags),
        words=list(words),
        searches=not points,
        jobs=jobs or None,
    )
    for each, point in zip(jobs, points, strict=True):
        write_job_file(each, point.composed, flags)
    if backup:
        CONSOLE.print(f"the earlier sweep was moved to {display_path(backup)}", soft_wrap=True)
    return sweep


def run_all(sweep: Sweep, launcher: DictConfig, start: Callable[[Mapping[str, Any]], None]) -> None:
    """Run the jobs through Hydra's launcher.

    Raises:
        KeyboardInterrupt: a signal stopped this process. Its jobs have saved; jobs of a scheduler continue.
    """
    changes: dict[str, Any] = {"sweep.dir": str(sweep.path), "sweep.subdir": "jobs"}
    if not launcher._target_.endswith(POOLS):
        with signals.received(signals.stop):
            return start(changes)
    mark = sweep.path / f".stop.{os.getpid()}"
    changes[f"job.env_set.{shutdown.MARK}"] = str(mark)
    if "n_jobs" in launcher:
        changes["launcher.n_jobs"] = gpu_pool.jobs_at_once(launcher)
    with shutdown.mark_signals(mark):
        return start(changes)


def sweep_folder(
    words: Sequence[str], points: Sequence[TrainingConfig], master: DictConfig
) -> Path:
    """Return the folder of a sweep, named after a saved sweep or the experiment, and the overrides."""
    choices = chosen_options(master.hydra)
    saved, composed = choices.get("sweep"), [point.composed for point in points]
    bases = {base_name(each) for each in (*(point.choices for point in composed), choices)}
    base = choices["experiment"] if len(bases) > 1 else bases.pop()
    base = base if saved in (None, "none") else saved
    names = (split_at_commas(word.partition("=")[2]) for word in words if key_of(word) == "name")
    given = ",".join(map(unquoted, next(names, ())))
    ours = [word for word in words if not is_hydras(word) and key_of(word) != "sweep"]
    common = {
        word for word in ours if composed and all(word in each.overrides for each in composed)
    }
    name = given or run_name(str(base), ours, named=[word for word in ours if word not in common])
    # Without points, because a sweeper chooses them later, the master config is used.
    output = (composed[0].config if composed else master).output_dir
    return Path(output).resolve() / "sweeps" / name


def adjust_points(
    points: Sequence[TrainingConfig], compose: Callable[[Sequence[str]], TrainingConfig]
) -> Sequence[TrainingConfig]:
    """Return the points as they will run: matched if `match` is set, each in its own directory."""
    if any(point.hardware.num_nodes > 1 for point in points):
        raise ConfigError(
            "hardware.num_nodes: a job of a sweep runs on one machine; use 1, or start a single run with "
            "torchrun or srun"
        )
    by = points[0].match if points else None
    if by is not None:
        points = match_points(points, by, compose)
    points = separate_directories(equalize_validation(points))
    require_same_points(points)
    return points


def require_same_points(points: Sequence[TrainingConfig]) -> None:
    """Refuse a user's name under which runs with another configuration exist.

    Raises:
        ConfigError: the differences of each point.
    """
    lines: list[str] = []
    for point in points:
        run, config = Run(Path(point.composed.directory)), point.composed.config
        if point.name and point.weights is None and not point.rerun and "fingerprint" in run.record:
            with collecting(lines):
                require_same_configuration(run, config, fingerprint(config))
    raise_all(lines)


def match_points(
    points: Sequence[TrainingConfig],
    by: str | Sequence[str],
    compose: Callable[[Sequence[str]], TrainingConfig],
) -> list[TrainingConfig]:
    """Return the points with overrides that match each to the first, and print what still differs."""
    for point in points:
        if vocabulary(point.composed.config) is None:
            # The size of the model depends on the vocabulary.
            point.data.build().prepare_data()
    found = match([point.tree for point in points], by)
    show_matched(points, found)
    return [
        compose([*point.composed.overrides, *each.overrides]) if each.overrides else point
        for point, each in zip(points, found, strict=True)
    ]


def equalize_validation(points: Sequence[TrainingConfig]) -> Sequence[TrainingConfig]:
    """Return the points with the same amount of validation data: that of the smallest budget.

    If a budget is in epochs, whose length is not known yet, all points use the whole validation data.
    """
    if any(point.trainer.val_bytes or point.trainer.val_batches for point in points):
        return points  # the user has set the amount
    budgets = {validation_budget(point) for point in points}
    if len(budgets) < 2:
        return points
    read = [validated_bytes(*each) for each in budgets]
    bound = math.inf if math.inf in read else round(min(read))
    return [
        replace(
            point,
            composed=with_value(point.composed, f"trainer.val_bytes={bound}", bound),
            trainer=replace(point.trainer, val_bytes=bound),
        )
        for point in points
    ]


def with_value(composed: Composed, word: str, value: Any) -> Composed:
    """Return a composed point with the override `word`, which sets its key to `value`."""
    key, config = key_of(word), composed.config.copy()
    OmegaConf.update(config, key, value)
    others = [each for each in composed.overrides if key_of(each) != key]
    return replace(composed, config=config, overrides=[*others, word])


def validation_budget(point: TrainingConfig) -> tuple[int | None, TrainerSettings]:
    """Return the maximum tokens of a batch (None if unknown) and the settings that determine the validation data."""
    data = point.composed.config.data
    length = OmegaConf.select(data, "context_length", throw_on_missing=False)
    unrelated = {"gradient_clip": None, "log_every": 1}
    return length and data.batch_size * length, replace(point.trainer, **unrelated)


def validated_bytes(tokens_per_batch: int | None, settings: TrainerSettings) -> float:
    """Return the maximum bytes of a validation under a budget; infinity if they depend on the data."""
    if tokens_per_batch is None or settings.max_epochs is not None:
        return math.inf
    steps = settings.steps(1, tokens_per_batch)
    return settings.validation_bytes(steps, tokens_per_batch)


def separate_directories(points: Sequence[TrainingConfig]) -> Sequence[TrainingConfig]:
    """Give each point its own directory: with a common name or a swept budget, several have the same.

    Raises:
        ConfigError: two points are the same.
    """
    composed = [point.composed for point in points]
    if len({each.directory for each in composed}) == len(points):
        return points
    renamed = []
    words = differing_words([each.overrides for each in composed])
    for point, each, own in zip(points, composed, words, strict=True):
        name = own_name(each, each.own, own)
        named = with_value(each, f"name={quoted_text(name)}", name)
        if "hydra.run.dir" not in map(key_of, each.overrides):
            named = replace(named, directory=str(Path(each.directory).with_name(name)))
        renamed.append(replace(point, composed=named, name=name))
    directories = Counter(point.composed.directory for point in renamed)
    directory, count = directories.most_common(1)[0]
    if count > 1:
        raise ConfigError(
            f"{display_path(Path(directory))}: {count} points of the sweep are the same run; "
            "leave out the repeated values"
        )
    return renamed
