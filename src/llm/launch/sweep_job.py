"""One job of a sweep. Under every launcher it has its own child process, so that it cannot affect the others."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from llm import signals
from llm.comparison.rows import best_loss
from llm.comparison.table import compare
from llm.config.composed import Composed
from llm.config.composition import launched_point
from llm.config.fingerprint import IGNORE_BUT_BUDGET, fingerprint
from llm.config.overrides import key_of
from llm.config.run_name import base_name, run_name
from llm.config.texts import quoted_text
from llm.launch import gpu_pool, shutdown
from llm.launch.job_file import job_command, write_composed
from llm.runs import ClaimedRunError, Run, run_metadata
from llm.sweeps import FOLDER, Job, Sweep

# Variables of a launcher of ranks. A job that inherits them would run as one rank of many.
RANKS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
)
# The same for srun: a job is always one task.
TASKS = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
NOT_PASSED_ON = (*RANKS, *TASKS, shutdown.MARK)
LONGEST_REASON = 400  # characters: an error may have a line for each value that differs
STATUSES = {
    0: "done",
    **dict.fromkeys(signals.INTERRUPTED, "interrupted"),
    ClaimedRunError.status: "elsewhere",
}


def planned_job(sweep: Sweep, number: int, point: Composed) -> Job:
    """Return the job of a point."""
    directory = Path(point.directory).resolve()
    metadata = {
        "name": directory.name,
        "sweep": sweep.name,
        **run_metadata(point.config, point.own, choices=point.choices),
    }
    return Job(
        sweep=sweep.path,
        number=number,
        overrides=tuple(point.own),
        directory=directory,
        request=fingerprint(point.config, IGNORE_BUT_BUDGET),
        identity=metadata,
    )


def write_job_file(each: Job, point: Composed, flags: Sequence[str]) -> None:
    """Write the job file of a point, which is already matched."""
    config = point.config.copy()
    config.match = None
    words = [*each.overrides, "match=null"]
    directory = str(each.directory)
    write_composed(each.file("yaml"), Composed(config, words, point.choices, directory, flags))


def own_name(point: Composed, words: Sequence[str], own: Sequence[str]) -> str:
    """Return the name of a point: from all its overrides or, if the sweep has a name, from those that only it has."""
    name = point.config.name
    own = [word for word in own if key_of(word) != "name"]
    return run_name(name or base_name(point.choices), own if name else words, named=own)


def job(config: DictConfig) -> float | None:
    """Run the job of a point, unless it is done. Hydra's launcher calls this in any process.

    Returns:
        The best validation loss, for searching sweepers; None if the run is not done.

    Raises:
        KeyboardInterrupt: a signal stopped the sweep.
    """
    hydra = HydraConfig.get()
    sweep = Sweep(Path(hydra.sweep.dir))
    plan = sweep.plan
    searches = plan["searches"]
    with shutdown.defer_signals() as signals_received:
        if signals_received():
            return None
        each = searched_job(sweep, plan, config) if searches else sweep.jobs[hydra.job.num]
        with each.claimed(blocking=searches) as is_ours:
            if is_ours and run_job(plan, each, config, signals_received):
                compare(sweep.runs).write(sweep.path)
    return best_loss(each.run) if each.run.status == "done" else None


def searched_job(sweep: Sweep, plan: Mapping[str, Any], config: DictConfig) -> Job:
    """Return the job of a searching sweeper's point: an earlier job with the same name, or a new one."""
    point = launched_point(config)
    words = [word for word in point.overrides if key_of(word) != "name"]
    own = [word for word in words if word not in plan["words"]]
    name = own_name(point, words, own)
    directory = str(Path(point.directory).parent / name)
    named = [*words, f"name={quoted_text(name)}"]
    point = replace(point, overrides=named, directory=directory)
    each = sweep.add(planned_job(sweep, 0, point))
    write_job_file(each, point, plan["flags"])
    return each


def run_job(
    plan: Mapping[str, Any], each: Job, config: DictConfig, signals_received: shutdown.SignalCount
) -> bool:
    """Run a job's process, unless its run is done, and record how it ended.

    Returns:
        Whether a process ran.
    """
    if each.is_done and not config.rerun:
        each.record(status="done")
        return False
    launcher = HydraConfig.get().launcher
    with gpu_pool.hold_gpus(config.hardware, launcher, is_over=signals_received) as devices:
        if signals_received():
            return False
        attempts = each.outcome.get("attempts", 0)
        each.record(status="running", error=None, attempts=attempts + 1)
        command = job_command(plan["job_command"], each.file("yaml"), config)
        kept = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
        before = Run(each.directory).record.get("ended")
        about = {"LLM_SWEEP": plan["name"], FOLDER: str(each.sweep)}
        status = run_process(each, command, kept | devices | about, signals_received)
    record_outcome(each, status, before)
    return True


def record_outcome(each: Job, status: int, before: str | None = None) -> None:
    """Record how a job's process ended: with `status`, negative after a signal.

    `before` is the end time in the run's record before the process started. If it is still the same, the process has
    not recorded how the run ended.
    """
    if status in STATUSES:
        each.record(status=STATUSES[status])
        return
    error, run = failure_reason(each, status, before), Run(each.directory)
    each.record(status="failed", error=error)
    if run.state == "interrupted" and run.status == "running":  # killed before it could record it
        with run.claimed():
            run.finish("failed", error=error)


def run_process(
    each: Job,
    command: Sequence[str],
    environment: dict[str, str],
    signals_received: shutdown.SignalCount,
) -> int:
    """Run a job's process and return its exit status. If the sweep stops, the job saves first."""
    with each.file("log").open("wb") as log, each.file("err").open("wb") as err:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=err,
            start_new_session=True,  # Ctrl-C reaches only this process, which passes it on
        )
        return shutdown.wait(process, signals_received)


def failure_reason(each: Job, status: int, before: str | None) -> str:
    """Return in one line why a job's process failed, from its record or its output."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    record = Run(each.directory).record
    if record.get("status") == "failed" and record.get("ended") != before:
        return str(record["error"]).splitlines()[0]
    lines = [line for line in each.file("err").read_text("utf-8", "replace").splitlines() if line]
    if not lines:
        return f"ended with status {status}"
    has_crashed = any(line.startswith("Traceback") for line in lines)
    return lines[-1] if has_crashed else "; ".join(lines)[:LONGEST_REASON]
