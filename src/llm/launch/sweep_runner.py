"""`llm train -m`: a sweep, from its points to its table.

Hydra's launcher calls `llm.launch.sweep_job.job` for each point. What came of each is kept in the sweep's folder: the
same line again skips what is done, resumes what was interrupted and tries once more what failed.
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
from llm.config.composition import chosen_options
from llm.config.errors import ConfigError
from llm.config.fingerprint import fingerprint
from llm.config.overrides import differing_words, key_of, unquoted
from llm.config.run_name import base_name, run_name
from llm.config.texts import quoted_text, split_at_commas
from llm.launch import gpu_pool, shutdown
from llm.launch.dashboard import watched
from llm.launch.sweep_job import entry, hand_over, own_name
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
# Launchers whose processes end with ours, several of them at once.
POOLS = ("JoblibLauncher", "LocalLauncher")


def launch_sweep(
    line: CommandLine,
    points: Sequence[TrainingConfig],
    *,
    master: DictConfig,
    start: Callable[[Mapping[str, Any]], None],
) -> int:
    """Run a sweep to its end, or to Ctrl-C, and show what came of it.

    Args:
        line: the command line.
        points: what each job is; none where a sweeper chooses as it goes.
        master: the sweep as it was composed, with Hydra's own section.
        start: lets Hydra run `job` for each point, with changes of Hydra's section.

    Returns:
        The exit status: 0 if every job is done, or in others' hands; 143 after SIGTERM, 130 after another
            interruption, else 1.

    Raises:
        RunningSweepError: another sweep is running under the name of this one.
    """
    require_divisible(points)
    words, flags = line.overrides, line.flags
    logging.getLogger("hydra_plugins").setLevel(logging.CRITICAL)  # what fails is in the table
    sweep = Sweep(sweep_folder(words, points, master))
    aside = sweep.begin(
        command=shell.command_line("llm", line.name, *flags, "-m", *words),
        job_command=line.name,
        flags=list(flags),
        words=list(words),
        searches=not points,
        jobs=[entry(sweep, number, point.composed) for number, point in enumerate(points)] or None,
    )
    for each, point in zip(sweep.jobs, points, strict=False):
        hand_over(each, point.composed, flags)
    if aside:
        CONSOLE.print(f"the sweep that stood here is kept as {display_path(aside)}", soft_wrap=True)
    CONSOLE.print(f"sweep {sweep.name}\n  in {display_path(sweep.path)}", soft_wrap=True)
    status, said = 0, ""
    with watched(sweep):
        try:
            run_all(sweep, master.hydra.launcher, start)
        except KeyboardInterrupt as stop:
            status = signals.status_of(signals.number_of(stop))
            said = "the sweep stopped; the same line goes on"
        except Exception as error:  # the launcher's or sweeper's: a job's own is a row of the table
            (sweep.path / "launcher.err").write_text(traceback.format_exc(), "utf-8")
            status, said = 1, f"{type(error).__name__}: {error} (more in launcher.err)"
    table = compare(sweep.runs)
    table.write(sweep.path)
    console = open_console()
    console.print(table.render(console.width))
    CONSOLE.print(f"{display_path(sweep.path)}/table.csv, table.md, loss.png", soft_wrap=True)
    if said:
        CONSOLE.print(said, soft_wrap=True)
    return status or int(any(run.state not in ("done", "running") for run in sweep.runs))


def run_all(sweep: Sweep, launcher: DictConfig, start: Callable[[Mapping[str, Any]], None]) -> None:
    """Let Hydra's launcher run the jobs.

    Raises:
        KeyboardInterrupt: this process was told to stop; jobs here have saved, others go on.
    """
    changes: dict[str, Any] = {"sweep.dir": str(sweep.path), "sweep.subdir": "jobs"}
    if not launcher._target_.endswith(POOLS):
        with shutdown.interruptible():
            return start(changes)
    mark = sweep.path / f".stop.{os.getpid()}"
    changes[f"job.env_set.{shutdown.MARK}"] = str(mark)
    if "n_jobs" in launcher:
        changes["launcher.n_jobs"] = gpu_pool.jobs_at_once(launcher)
    with shutdown.marking(mark):
        return start(changes)


def sweep_folder(
    words: Sequence[str], points: Sequence[TrainingConfig], master: DictConfig
) -> Path:
    """Return where a sweep's own files go: named by a saved sweep or the experiment, and by the command's words."""
    choices = chosen_options(master.hydra)
    saved, composed = choices.get("sweep"), [point.composed for point in points]
    bases = {base_name(each) for each in (*(point.choices for point in composed), choices)}
    base = choices["experiment"] if len(bases) > 1 else bases.pop()
    base = base if saved in (None, "none") else saved
    names = (split_at_commas(word.partition("=")[2]) for word in words if key_of(word) == "name")
    given = ",".join(map(unquoted, next(names, ())))
    ours = [word for word in words if not word.startswith("hydra") and key_of(word) != "sweep"]
    common = {
        word for word in ours if composed and all(word in each.overrides for each in composed)
    }
    name = given or run_name(str(base), ours, named=[word for word in ours if word not in common])
    # A sweeper that chooses as it goes has no points yet, but what they share was composed.
    output = (composed[0].config if composed else master).output_dir
    return Path(output).resolve() / "sweeps" / name


def adjusted(
    points: Sequence[TrainingConfig], compose: Callable[[Sequence[str]], TrainingConfig]
) -> list[TrainingConfig]:
    """Return the points as they are going to run: matched in size or budget if wanted, each in its own directory."""
    if any(point.hardware.num_nodes > 1 for point in points):
        raise ConfigError(
            "hardware.num_nodes: a job of a sweep runs on one machine; give 1, or start the run itself with "
            "torchrun or srun"
        )
    by = points[0].match if points else None
    if by is not None:
        points = match_points(points, by, compose)
    points = name_apart(validated_alike(points, compose), compose)
    require_same_points(points)
    return points


def require_same_points(points: Sequence[TrainingConfig]) -> None:
    """Refuse a name, given by the user, under which runs of another configuration stand.

    Raises:
        ConfigError: with what differs, of each point.
    """
    lines = []
    for config, directory in (
        (point.composed.config, point.composed.directory) for point in points
    ):
        run, meaning = Run(Path(directory)), fingerprint(config)
        is_plain = config.name and config.weights is None and not config.rerun
        if is_plain and run.record.get("fingerprint", meaning) != meaning:
            try:
                require_same_configuration(run, config, meaning)
            except ConfigError as error:
                lines += error.problems
    if lines:
        raise ConfigError(*lines)


def match_points(
    points: Sequence[TrainingConfig],
    by: str | Sequence[str],
    compose: Callable[[Sequence[str]], TrainingConfig],
) -> list[TrainingConfig]:
    """Give each point what makes it equal to the first, and say what remains unequal."""
    for point in points:
        if vocabulary(point.composed.config) is None:
            # As the first job would: a model is as large as its alphabet.
            point.data.build().prepare_data()
    found = match([point.tree for point in points], by)
    show_matched(points, found)
    return [
        compose([*point.composed.overrides, *each.overrides]) if each.overrides else point
        for point, each in zip(points, found, strict=True)
    ]


def validated_alike(
    points: Sequence[TrainingConfig], compose: Callable[[Sequence[str]], TrainingConfig]
) -> Sequence[TrainingConfig]:
    """Let points of different budgets validate on the same part of their data: that of the smallest budget.

    How long an epoch is shows only once data are read: where a budget is in epochs, all validate on the whole part.
    """
    if any(point.trainer.val_bytes or point.trainer.val_batches for point in points):
        return points  # how much is read was chosen
    budgets = {validation_budget(point) for point in points}
    if len(budgets) < 2:
        return points
    read = [validated_bytes(*each) for each in budgets]
    bound = "inf" if math.inf in read else f"{min(read):.0f}"
    return [compose([*point.composed.overrides, f"trainer.val_bytes={bound}"]) for point in points]


def validation_budget(point: TrainingConfig) -> tuple[int | None, TrainerSettings]:
    """Return the tokens of a batch at most, None if unknown, and the settings that decide what a validation reads."""
    data = point.composed.config.data
    length = OmegaConf.select(data, "context_length", throw_on_missing=False)
    unrelated = {"gradient_clip": None, "log_every": 1}
    return length and data.batch_size * length, replace(point.trainer, **unrelated)


def validated_bytes(tokens_per_batch: int | None, settings: TrainerSettings) -> float:
    """Return the bytes that a validation reads at most under a budget; infinite if the data decide it."""
    if tokens_per_batch is None or settings.max_epochs is not None:
        return math.inf
    steps = settings.steps(1, tokens_per_batch)
    return settings.validation_bytes(steps, tokens_per_batch)


def name_apart(
    points: Sequence[TrainingConfig], compose: Callable[[Sequence[str]], TrainingConfig]
) -> list[TrainingConfig]:
    """Give each point a directory of its own, where a common name or a swept budget left them with one.

    Raises:
        ConfigError: two points are the same.
    """
    composed = [point.composed for point in points]
    counts = Counter(point.directory for point in composed)
    if max(counts.values(), default=1) == 1:
        return list(points)
    renamed = []
    for point, own in zip(
        composed, differing_words([each.overrides for each in composed]), strict=True
    ):
        name = own_name(point, point.own, own)
        others = [word for word in point.overrides if key_of(word) != "name"]
        renamed.append(compose([*others, f"name={quoted_text(name)}"]))
    directories = [point.composed.directory for point in renamed]
    directory, count = Counter(directories).most_common(1)[0]
    if count > 1:
        raise ConfigError(
            f"{display_path(Path(directory))}: {count} points of the sweep are this one run; "
            "leave out what is there twice"
        )
    return renamed
