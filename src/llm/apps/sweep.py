"""`llm train -m`: a sweep. Hydra's launcher calls `job` for each point, and that starts a process for it.

So no job inherits another's memory or state, whichever launcher runs them, and one that dies takes
nothing with it. What came of each is kept in the sweep's folder: the same line again skips what is
done, goes on with what was interrupted and tries once more what failed.
"""

import logging
import math
import os
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

import llm.apps.train  # noqa: F401  (which teaches OmegaConf how runs are named, in any process)
from llm.apps.watching import watched
from llm.comparison.rows import best_loss
from llm.comparison.table import compare
from llm.config.composition import Point, chosen, quoted
from llm.config.errors import ConfigError
from llm.config.fingerprint import WATCHED, fingerprint, recipe
from llm.runs import ClaimedRunError, Run, key_of, name_of, short
from llm.sweeps import Job, Sweep

CONSOLE = Console(highlight=False)
# What a launcher of parallel processes leaves behind, which would let a job take itself for one of many.
RANKS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
)
INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def launch(
    verb: str,
    words: Sequence[str],
    points: Sequence[Point],
    options: Sequence[str],
    start: Callable,
) -> int:
    """Run a sweep to its end, or to Ctrl-C, and show what came of it.

    Args:
        verb: what each job does.
        words: the overrides of the command line.
        points: what each job is; none where a sweeper chooses as it goes.
        options: flags that each job needs, such as a folder of configs.
        start: lets Hydra run `job` for each point, given overrides of its own.

    Returns:
        The exit status: 0 if every job is done, or in others' hands; 130 after an interruption, else 1.
    """
    logging.getLogger("hydra").setLevel(logging.WARNING)  # what it launches we tell ourselves
    sweep = Sweep(folder(words, points))
    sweep.begin(
        command=shlex.join(["llm", verb, "-m", *words]),
        verb=verb,
        options=list(options),
        jobs=[entry(sweep, number, point) for number, point in enumerate(points)],
    )
    CONSOLE.print(f"sweep {sweep.name}\n  in {short(sweep.path)}", soft_wrap=True)
    status = 0
    with watched(sweep):
        try:
            start([f"hydra.sweep.dir={quoted(str(sweep.path))}", "hydra.sweep.subdir=jobs"])
        except KeyboardInterrupt:
            status = INTERRUPTED
    table = compare(sweep.runs)
    table.write(sweep.path)
    CONSOLE.print(table.render())
    CONSOLE.print(f"{short(sweep.path)}/table.csv, table.md, loss.png", soft_wrap=True)
    if status:
        CONSOLE.print("the sweep stopped; the same line goes on")
    return status or int(any(run.state not in ("done", "running") for run in sweep.runs))


def folder(words: Sequence[str], points: Sequence[Point]) -> Path:
    """Where a sweep's own files go: named by a saved sweep or the experiment, and by the command's words."""
    hydra = HydraConfig.get()
    choices = dict(hydra.runtime.choices)
    saved = choices.get("sweep")
    base = choices.get("experiment") if saved in (None, "none") else saved
    given = next((word.partition("=")[2] for word in words if key_of(word) == "name"), None)
    ours = [word for word in words if not word.startswith("hydra") and key_of(word) != "sweep"]
    common = set.intersection(*(set(point.overrides) for point in points)) if points else set()
    name = given or name_of(str(base), ours, named=[word for word in ours if word not in common])
    output = points[0].config.output_dir if points else "outputs"
    return Path(output).resolve() / "sweeps" / name


def entry(sweep: Sweep, number: int, point: Point) -> dict:
    """What the sweep's folder keeps of a point."""
    overrides = [word for word in point.overrides if not word.startswith("hydra")]
    directory = Path(point.directory).resolve()
    identity = {
        "name": directory.name,
        "seed": point.config.seed,
        "recipe": recipe(point.config),
        "task": point.choices.get("task"),
        "choices": point.choices,
        "overrides": {key: value for key, _, value in (w.partition("=") for w in overrides)},
        "sweep": sweep.name,
    }
    request = fingerprint(point.config, WATCHED)
    return sweep.entry(number, overrides, directory, request, identity)


def adjusted(points: Sequence[Point], compose: Callable[[Sequence[str]], Point]) -> list[Point]:
    """The points as they are going to run: matched in size or budget where asked, each in its own directory."""
    by = points[0].config.get("match") if points else None
    if by is not None:
        points = matched(points, by, compose)
    return told_apart(points, compose)


def matched(
    points: Sequence[Point], by: str | Sequence[str], compose: Callable[[Sequence[str]], Point]
) -> list[Point]:
    """Give each point what makes it equal to the first, and say what remains unequal."""
    from llm.apps.checking import adopted, show_matched  # which import torch: only where asked
    from llm.config.build import build
    from llm.planning.cost import vocabulary
    from llm.planning.matching import match

    for config in (point.config for point in points):
        if vocabulary(config) is None:
            build(config.data).prepare_data()  # as the first job would: a model is as large as its alphabet
    found = match([adopted(point.config, point.overrides) for point in points], by)
    show_matched(points, found)
    return [
        compose([*point.overrides, *each.overrides]) if each.overrides else point
        for point, each in zip(points, found, strict=True)
    ]


def told_apart(points: Sequence[Point], compose: Callable[[Sequence[str]], Point]) -> list[Point]:
    """Give each point a directory of its own, where a common name or a swept budget left them with one.

    Raises:
        ConfigError: two points are the same.
    """
    counts = Counter(point.directory for point in points)
    if max(counts.values(), default=1) == 1:
        return list(points)
    common = set.intersection(*(set(point.overrides) for point in points))
    renamed = []
    for point in points:
        own = [word for word in point.overrides if word not in common]
        given = point.config.name
        words = own if given else [w for w in point.overrides if not w.startswith("hydra")]
        name = name_of(given or str(point.choices.get("experiment")), words, named=own)
        others = [word for word in point.overrides if key_of(word) != "name"]
        renamed.append(compose([*others, f"name={quoted(name)}"]))
    counts = Counter(point.directory for point in renamed)
    twice = [point for point in renamed if counts[point.directory] > 1]
    if twice:
        raise ConfigError(
            f"{short(Path(twice[0].directory))}: {len(twice)} points of the sweep are this one run; "
            "leave out what is there twice"
        )
    return renamed


def job(config: DictConfig) -> float:
    """What Hydra's launcher calls for a point: see to it that its run is done.

    Returns:
        The best validation loss, for sweepers that search; NaN where the job failed.

    Raises:
        KeyboardInterrupt: the sweep is to stop.
    """
    hydra = HydraConfig.get()
    sweep = Sweep(Path(hydra.sweep.dir))
    known = {each.number: each for each in sweep.jobs}
    if hydra.job.num in known:
        each = known[hydra.job.num]
    else:
        each = sweep.add(**entry(sweep, hydra.job.num, _point_of(config)))
    with each.claimed() as is_ours:
        if is_ours:
            carry_out(sweep, each, is_done=each.is_done and not config.rerun)
            compare(sweep.runs).write(sweep.path)
    loss = best_loss(each.run)
    return math.nan if loss is None or each.run.status != "done" else loss


def carry_out(sweep: Sweep, each: Job, is_done: bool) -> None:
    """Run a job's process, unless its run is done, and record how it ended."""
    attempts = each.outcome.get("attempts", 0)
    if is_done:
        each.record(status="done", request=each.request)
        return
    each.record(status="running", error=None, attempts=attempts + 1, request=each.request)
    plan = sweep.plan
    words = [*each.overrides, "match=null", "hydra.mode=RUN"]  # one run, however it is composed
    command = ["-m", "llm", plan["verb"], *plan["options"], *words]
    environment = {name: value for name, value in os.environ.items() if name not in RANKS}
    environment["LLM_SWEEP"] = sweep.name
    status, is_stopped = run_process(each, [sys.executable, *command], environment)
    if status == 0:
        each.record(status="done")
    elif status == ClaimedRunError.status:
        each.record(status="elsewhere")
    elif status == INTERRUPTED:
        each.record(status="interrupted")
    else:
        error = reason(each, status)
        each.record(status="failed", error=error)
        bury(Run(each.directory), error)
    if is_stopped:
        raise KeyboardInterrupt


class Ended(NamedTuple):
    """How a job's process ended.

    Attributes:
        status: its exit status, negative after a signal.
        is_stopped: whether the sweep was told to stop meanwhile.
    """

    status: int
    is_stopped: bool = False


def run_process(each: Job, command: Sequence[str], environment: dict[str, str]) -> Ended:
    """Run a job's process to its end, in spite of signals: they reach it too, and it may save.

    Ctrl-C reaches it by itself, for a terminal tells all; what ends this process alone, such as a
    scheduler's SIGTERM, is handed on.
    """
    received = []

    def remember(number: int, frame: object) -> None:
        received.append(number)
        if number == signal.SIGTERM:
            process.terminate()

    with each.file("log").open("wb") as log, each.file("err").open("wb") as err:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=err)
        before = {each: signal.signal(each, remember) for each in SIGNALS}
        try:
            return Ended(process.wait(), bool(received))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def reason(each: Job, status: int) -> str:
    """Why a job's process failed, in one line: its record's word, or the last of what it printed."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    said = Run(each.directory).record
    if said.get("status") == "failed" and said.get("request") == each.request:
        return str(said["error"]).splitlines()[0]
    lines = [line for line in each.file("err").read_text("utf-8", "replace").splitlines() if line]
    if not lines:
        return f"ended with status {status}"
    crashed = any(line.startswith("Traceback") for line in lines)
    return lines[-1] if crashed else lines[0]


def bury(run: Run, error: str) -> None:
    """Record the end of a run whose process had no time to."""
    if run.state == "interrupted" and run.status == "running":
        with run.claimed():
            run.finish("failed", error=error)


def _point_of(config: DictConfig) -> Point:
    """The point that a sweeper chose just now."""
    hydra = HydraConfig.get()
    return Point(list(hydra.overrides.task), config, chosen(), str(hydra.run.dir))
