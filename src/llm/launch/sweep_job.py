"""One job of a sweep, in the process where Hydra's launcher calls it: it starts a process of its own and waits.

So no job inherits another's memory or state, whichever launcher runs them, and one that dies takes nothing with it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from llm import signals
from llm.comparison.rows import best_loss
from llm.comparison.table import compare
from llm.config.composed import Composed, all_trusted
from llm.config.composition import launched
from llm.config.fingerprint import WATCHED, fingerprint
from llm.config.overrides import key_of
from llm.config.run_name import base_name, run_name
from llm.config.texts import quoted_text
from llm.launch import gpu_pool, shutdown
from llm.launch.job_file import write_composed
from llm.runs import ClaimedRunError, Run, run_metadata
from llm.sweeps import FOLDER, Job, Sweep

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


def entry(sweep: Sweep, number: int, point: Composed) -> dict:
    """What the sweep's folder keeps of a point."""
    directory = Path(point.directory).resolve()
    called = {
        "name": directory.name,
        "sweep": sweep.name,
        **run_metadata(point.config, point.own, choices=point.choices),
    }
    request = fingerprint(point.config, WATCHED)
    return sweep.entry(number, point.own, directory=directory, request=request, identity=called)


def hand_over(each: Job, point: Composed, flags: Sequence[str]) -> None:
    """Write what a job's process reads: one run, however it was composed."""
    config = point.config.copy()
    config.match = None
    words = [*each.overrides, "match=null"]
    directory = str(each.directory)
    write_composed(each.file("yaml"), Composed(config, words, point.choices, directory, flags))


def own_name(point: Composed, words: Sequence[str], own: Sequence[str]) -> str:
    """Return the name of a point, made of all its words; of its own ones if the user named all points alike."""
    name = point.config.name
    return run_name(name or base_name(point.choices), own if name else words, named=own)


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
    name = own_name(point, words, own)
    directory = str(Path(point.directory).parent / name)
    named = [*words, f"name={quoted_text(name)}"]
    point = replace(point, overrides=named, directory=directory)
    each = sweep.add(**entry(sweep, 0, point))
    hand_over(each, point, plan["flags"])
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
