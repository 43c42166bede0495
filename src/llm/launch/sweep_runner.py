"""`llm train -m`: a sweep. Hydra's launcher calls `job` for each point, and that starts a process for it.

So no job inherits another's memory or state, whichever launcher runs them, and one that dies takes
nothing with it. What came of each is kept in the sweep's folder: the same line again skips what is
done, goes on with what was interrupted and tries once more what failed.
"""

import logging
import math
import os
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from llm import signals
from llm.comparison.rows import best_loss
from llm.comparison.table import compare
from llm.config.composition import launched
from llm.config.errors import ConfigError
from llm.config.fingerprint import WATCHED, fingerprint
from llm.config.overrides import differing_words, key_of, unquoted
from llm.config.point import Point, all_trusted
from llm.config.run_name import base_name, run_name
from llm.config.texts import quoted_text, split_at_commas
from llm.launch import gpu_pool, shutdown
from llm.launch.dashboard import watched
from llm.launch.job_file import write_point
from llm.runs import ClaimedRunError, Run, display_path, run_metadata
from llm.sweeps import FOLDER, Job, Sweep
from llm.terminal import shell
from llm.terminal.console import new_console
from llm.terminal.tables import open_console

CONSOLE = new_console()
# What a launcher of parallel processes leaves behind, which would let a job take itself for one of many.
RANKS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
)
# And what srun does: of several tasks in a step only one has the job.
TASKS = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
NOT_PASSED_ON = (*RANKS, *TASKS, shutdown.MARK)
LONGEST_REASON = 400  # letters: a refusal may have a line for each value that differs
STATUSES = {
    0: "done",
    **dict.fromkeys(signals.INTERRUPTED, "interrupted"),
    ClaimedRunError.status: "elsewhere",
}
# Launchers whose processes end with ours, several of them at once.
POOLS = ("JoblibLauncher", "LocalLauncher")


def launch_sweep(
    command: str,
    words: Sequence[str],
    points: Sequence[Point],
    options: Sequence[str],
    start: Callable,
) -> int:
    """Run a sweep to its end, or to Ctrl-C, and show what came of it.

    Args:
        command: what each job runs.
        words: the overrides of the command line.
        points: what each job is; none where a sweeper chooses as it goes.
        options: flags that each job needs, such as a folder of configs.
        start: lets Hydra run `job` for each point, given overrides of its own.

    Returns:
        The exit status: 0 if every job is done, or in others' hands; 143 after SIGTERM, 130 after another
            interruption, else 1.

    Raises:
        RunningSweepError: another sweep is running under the name of this one.
    """
    if any(point.config.hardware.get("strategy") for point in points):
        from llm.training.dry_run import require_divisible  # which imports torch

        require_divisible(points)
    logging.getLogger("hydra_plugins").setLevel(logging.CRITICAL)  # what fails is in the table
    sweep = Sweep(sweep_folder(words, points))
    aside = sweep.begin(
        command=shell.command_line("llm", command, *options, "-m", *words),
        job_command=command,
        options=list(options),
        words=list(words),
        searches=not points,
        jobs=[entry(sweep, number, point) for number, point in enumerate(points)] or None,
    )
    for each, point in zip(sweep.jobs, points, strict=False):
        hand_over(each, point, options)
    if aside:
        CONSOLE.print(f"the sweep that stood here is kept as {display_path(aside)}", soft_wrap=True)
    CONSOLE.print(f"sweep {sweep.name}\n  in {display_path(sweep.path)}", soft_wrap=True)
    status, said = 0, ""
    with watched(sweep):
        try:
            run_all(sweep, start)
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


def run_all(sweep: Sweep, start: Callable[[Sequence[str]], None]) -> None:
    """Let Hydra's launcher run the jobs.

    Raises:
        KeyboardInterrupt: this process was told to stop; jobs here have saved, others go on.
    """
    launcher = HydraConfig.get().launcher
    words = [f"hydra.sweep.dir={quoted_text(str(sweep.path))}", "hydra.sweep.subdir=jobs"]
    if not launcher._target_.endswith(POOLS):
        with shutdown.interruptible():
            return start(words)
    mark = sweep.path / f".stop.{os.getpid()}"
    words += [f"+hydra.job.env_set.{shutdown.MARK}={quoted_text(str(mark))}"]
    with shutdown.marking(mark):
        return start([*words, *gpu_pool.jobs_at_once(launcher)])


def sweep_folder(words: Sequence[str], points: Sequence[Point]) -> Path:
    """Where a sweep's own files go: named by a saved sweep or the experiment, and by the command's words."""
    hydra: Any = HydraConfig.get()
    choices = dict(hydra.runtime.choices)
    saved = choices.get("sweep")
    bases = {base_name(each) for each in (*(point.choices for point in points), choices)}
    base = choices["experiment"] if len(bases) > 1 else bases.pop()
    base = base if saved in (None, "none") else saved
    names = (split_at_commas(word.partition("=")[2]) for word in words if key_of(word) == "name")
    given = ",".join(map(unquoted, next(names, ())))
    ours = [word for word in words if not word.startswith("hydra") and key_of(word) != "sweep"]
    common = {word for word in ours if points and all(word in each.overrides for each in points)}
    name = given or run_name(str(base), ours, named=[word for word in ours if word not in common])
    # A sweeper that chooses as it goes has no points yet, but what they share was composed.
    output = points[0].config.output_dir if points else OmegaConf.select(hydra, "..output_dir")
    return Path(output).resolve() / "sweeps" / name


def entry(sweep: Sweep, number: int, point: Point) -> dict:
    """What the sweep's folder keeps of a point."""
    directory = Path(point.directory).resolve()
    called = {
        "name": directory.name,
        "sweep": sweep.name,
        **run_metadata(point.config, point.own, point.choices),
    }
    request = fingerprint(point.config, WATCHED)
    return sweep.entry(number, point.own, directory, request, called)


def hand_over(each: Job, point: Point, options: Sequence[str]) -> None:
    """Write what a job's process reads: one run, however it was composed."""
    config = point.config.copy()
    config.match = None
    words = [*each.overrides, "match=null"]
    directory = str(each.directory)
    write_point(each.file("yaml"), Point(words, config, point.choices, directory, options))


def adjusted(points: Sequence[Point], compose: Callable[[Sequence[str]], Point]) -> list[Point]:
    """The points as they are going to run: matched in size or budget where asked, each in its own directory."""
    if any(point.config.hardware.num_nodes > 1 for point in points):
        raise ConfigError(
            "hardware.num_nodes: a job of a sweep runs on one machine; give 1, or start the run itself with "
            "torchrun or srun"
        )
    by = points[0].config.get("match") if points else None
    if by is not None:
        points = match_points(points, by, compose)
    points = name_apart(validated_alike(points, compose), compose)
    require_same_points(points)
    return points


def require_same_points(points: Sequence[Point]) -> None:
    """Refuse a name, given by the user, under which runs of another configuration stand.

    Raises:
        ConfigError: with what differs, of each point.
    """
    lines = []
    for config, directory in ((point.config, point.directory) for point in points):
        run, meaning = Run(Path(directory)), fingerprint(config)
        is_plain = config.name and config.weights is None and not config.rerun
        if is_plain and run.record.get("fingerprint", meaning) != meaning:
            from llm.training.preflight import (
                require_same_configuration as refuse,  # which imports torch
            )

            try:
                refuse(run, config, meaning)
            except ConfigError as error:
                lines += error.problems
    if lines:
        raise ConfigError(*lines)


def match_points(
    points: Sequence[Point], by: str | Sequence[str], compose: Callable[[Sequence[str]], Point]
) -> list[Point]:
    """Give each point what makes it equal to the first, and say what remains unequal."""
    from llm.config.build import build
    from llm.planning.cost import vocabulary
    from llm.planning.matching import match
    from llm.training.dry_run import show_matched  # which import torch: only where needed
    from llm.training.setup import adopted

    for config in (point.config for point in points):
        if vocabulary(config) is None:
            # As the first job would: a model is as large as its alphabet.
            build(config.data).prepare_data()
    found = match([adopted(point.config, point.overrides) for point in points], by)
    show_matched(points, found)
    return [
        compose([*point.overrides, *each.overrides]) if each.overrides else point
        for point, each in zip(points, found, strict=True)
    ]


def validated_alike(
    points: Sequence[Point], compose: Callable[[Sequence[str]], Point]
) -> Sequence[Point]:
    """Let points of different budgets validate on the same part of their data: that of the smallest budget.

    How long an epoch is shows only once data are read: where a budget is in epochs, all validate on the whole part.
    """
    budgets = [validation_budget(point.config) for point in points]
    if len({*budgets}) < 2 or None in budgets:
        return points
    read = [validated_bytes(*each) for each in budgets if each]
    bound = "inf" if math.inf in read else f"{min(read):.0f}"
    return [compose([*point.overrides, f"trainer.val_bytes={bound}"]) for point in points]


def validation_budget(config: DictConfig) -> tuple[int | None, tuple[tuple[str, Any], ...]] | None:
    """The tokens of a batch at most, None if unknown, and the settings that decide how much a validation reads.

    None if how much it reads is chosen.
    """
    if config.trainer.get("val_bytes") or config.trainer.get("val_batches"):
        return None
    keys = ("max_steps", "max_epochs", "max_tokens", "accumulate", "val_every")
    words = {key: config.trainer.get(key) for key in keys}
    length = OmegaConf.select(config, "data.context_length", throw_on_missing=False)
    return length and config.data.batch_size * length, tuple(words.items())


def validated_bytes(tokens_per_batch: int | None, words: Iterable[tuple[str, Any]]) -> float:
    """The bytes that a validation reads at most under a budget; infinite where data decide it."""
    from llm.training.trainer import TrainerSettings  # which imports torch: only where needed

    settings = TrainerSettings(**dict(words))
    if tokens_per_batch is None or settings.max_epochs is not None:
        return math.inf
    steps = settings.steps(1, tokens_per_batch)
    return settings.validation_bytes(steps, tokens_per_batch)


def name_apart(points: Sequence[Point], compose: Callable[[Sequence[str]], Point]) -> list[Point]:
    """Give each point a directory of its own, where a common name or a swept budget left them with one.

    Raises:
        ConfigError: two points are the same.
    """
    counts = Counter(point.directory for point in points)
    if max(counts.values(), default=1) == 1:
        return list(points)
    renamed = []
    for point, own in zip(
        points, differing_words([each.overrides for each in points]), strict=True
    ):
        name = own_name(point.config, point.choices, point.own, own)
        others = [word for word in point.overrides if key_of(word) != "name"]
        renamed.append(compose([*others, f"name={quoted_text(name)}"]))
    counts = Counter(point.directory for point in renamed)
    twice = [point for point in renamed if counts[point.directory] > 1]
    if twice:
        raise ConfigError(
            f"{display_path(Path(twice[0].directory))}: {len(twice)} points of the sweep are this one run; "
            "leave out what is there twice"
        )
    return renamed


def own_name(
    config: DictConfig,
    choices: Mapping[str, str | None],
    words: Sequence[str],
    own: Sequence[str],
) -> str:
    """What a point is called, by all its words; where the user named them all, by those of its own."""
    return run_name(config.name or base_name(choices), own if config.name else words, named=own)


def job(config: DictConfig) -> float | None:
    """What Hydra's launcher calls for a point, in whatever process: see to it that its run is done.

    Returns:
        The best validation loss, for sweepers that search; None where there is no such run.

    Raises:
        KeyboardInterrupt: the sweep is to stop.
    """
    hydra = HydraConfig.get()
    sweep = Sweep(Path(hydra.sweep.dir))
    plan = sweep.plan
    searches = plan["searches"]
    with shutdown.deferred() as signals_received:
        if signals_received():
            return None
        each = found(sweep, plan, config) if searches else sweep.jobs[hydra.job.num]
        with each.claimed(blocking=searches) as is_ours:
            if is_ours and carry_out(plan, each, config, signals_received):
                compare(sweep.runs).write(sweep.path)
    return best_loss(each.run) if each.run.status == "done" else None


def found(sweep: Sweep, plan: Mapping[str, Any], config: DictConfig) -> Job:
    """The job of a point that a sweeper has found: the one that it found before, or a new one."""
    point = launched(config)
    words = [word for word in point.overrides if key_of(word) != "name"]
    own = [word for word in words if word not in plan["words"]]
    name = own_name(config, point.choices, words, own)
    directory = str(Path(point.directory).parent / name)
    point = point._replace(overrides=[*words, f"name={quoted_text(name)}"], directory=directory)
    each = sweep.add(**entry(sweep, 0, point))
    hand_over(each, point, plan["options"])
    return each


def carry_out(
    plan: Mapping[str, Any], each: Job, config: DictConfig, signals_received: shutdown.Asked
) -> bool:
    """Run a job's process, unless its run is done, and record how it ended.

    Returns:
        Whether there was a process, and so may be news for the table.
    """
    if each.is_done and not config.rerun:
        each.record(status="done")
        return False
    launcher = HydraConfig.get().launcher
    with gpu_pool.holding_gpus(config.hardware, launcher, is_over=signals_received) as devices:
        if signals_received():
            return False
        attempts = each.outcome.get("attempts", 0)
        each.record(status="running", error=None, attempts=attempts + 1)
        file = each.file("yaml")
        command = [
            sys.executable,
            "-m",
            "llm",
            plan["job_command"],
            "--job",
            str(file),
            *all_trusted(config),
        ]
        kept = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
        before = Run(each.directory).record.get("ended")
        about = {"LLM_SWEEP": plan["name"], FOLDER: str(each.sweep)}
        status = run_process(each, command, kept | devices | about, signals_received)
    conclude(each, status, before)
    return True


def conclude(each: Job, status: int, before: str | None = None) -> None:
    """Record how a job's process ended.

    Args:
        each: the job.
        status: its exit status, negative after a signal.
        before: when its run had ended as the process began; what was recorded then is old.
    """
    if status in STATUSES:
        each.record(status=STATUSES[status])
        return
    error = reason(each, status, before)
    each.record(status="failed", error=error)
    mark_failed(Run(each.directory), error)


def run_process(
    each: Job, command: Sequence[str], environment: dict[str, str], signals_received: shutdown.Asked
) -> int:
    """Run a job's process to its end; it saves before that where the sweep is to stop.

    It stands in a session of its own, so that nobody but us tells it, and once.
    """
    with each.file("log").open("wb") as log, each.file("err").open("wb") as err:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=err,
            start_new_session=True,
        )
        return shutdown.wait(process, signals_received)


def reason(each: Job, status: int, before: str | None) -> str:
    """Why a job's process failed, in one line: its record's word, or the last of what it printed."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    said = Run(each.directory).record
    if said.get("status") == "failed" and said.get("ended") != before:
        return str(said["error"]).splitlines()[0]
    lines = [line for line in each.file("err").read_text("utf-8", "replace").splitlines() if line]
    if not lines:
        return f"ended with status {status}"
    has_crashed = any(line.startswith("Traceback") for line in lines)
    return lines[-1] if has_crashed else "; ".join(lines)[:LONGEST_REASON]


def mark_failed(run: Run, error: str) -> None:
    """Record the end of a run whose process had no time to."""
    if run.state == "interrupted" and run.status == "running":
        with run.claimed():
            run.finish("failed", error=error)
