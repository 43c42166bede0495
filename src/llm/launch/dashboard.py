"""Display of a running sweep: a live table on a terminal, otherwise one line per event.

It reads only files, so the jobs may run under any launcher on any machine.
"""

import csv
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llm.comparison.result import as_number, complete_lines
from llm.comparison.table import STYLES
from llm.config.overrides import differing_words, key_of
from llm.sweeps import Job, Sweep
from llm.terminal.console import new_console
from llm.units import duration

SECONDS = 1.0  # between two refreshes
TAIL = 1 << 14  # bytes at the end of metrics.csv that are read for the newest metrics
FRAME = 6  # lines of the terminal that are not jobs
ENDED = ("done", "failed")
ORDER = ("running", "starting", "failed", "interrupted", "elsewhere", "pending", "done")


class View(NamedTuple):
    """The state of a job at one moment; unknown values are None.

    Attributes:
        number: its index in the sweep.
        label: the overrides that distinguish it from the other jobs.
        status: status of its run; `starting` before there is a run, `elsewhere` if another process trains it.
        error: why it failed.
        steps: optimizer steps taken, and their total.
        loss: the newest training loss.
        val_loss: the newest validation loss.
        speed: training tokens per second.
        left: remaining seconds.
    """

    number: int
    label: str
    status: str
    error: str | None
    steps: tuple[float, float | None]
    loss: float | None
    val_loss: float | None
    speed: float | None
    left: float | None


@contextmanager
def show_sweep(sweep: Sweep, console: Console | None = None) -> Iterator[None]:
    """Display a sweep within a block."""
    console = console or new_console()
    if console.is_terminal:
        screen = Screen(sweep, console)
        with Live(get_renderable=screen.draw, console=console, refresh_per_second=1 / SECONDS):
            yield
        return
    reporter, is_over = LineReporter(console), Event()
    reporter.report(read_views(sweep))
    thread = Thread(target=_report_until, args=(sweep, reporter, is_over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def follow(sweep: Sweep, console: Console | None = None) -> None:
    """Display a sweep of another process until all jobs have ended."""
    with show_sweep(sweep, console):
        while any(view.status not in ENDED for view in read_views(sweep)):
            time.sleep(SECONDS)


# The state of the jobs


def read_views(sweep: Sweep) -> list[View]:
    """Read the current state of all jobs."""
    jobs = sweep.jobs
    words = differing_words([job.overrides for job in jobs])
    # A name that the sweep has set repeats the other words.
    labels = (" ".join(w for w in own if key_of(w) != "name") for own in words)
    return [_view(job, label) for job, label in zip(jobs, labels, strict=True)]


def _view(job: Job, label: str) -> View:
    run = job.run
    record, metrics = run.record, newest_metrics(run.metrics)
    status = _status(str(job.outcome.get("status", "")), run.status)
    step, steps = metrics.get("step", 0.0), record.get("max_steps")
    speed = metrics.get("speed/tokens_per_second")
    left = None
    if status == "running" and steps and speed and record.get("tokens_per_step"):
        left = max(0.0, steps - step) * record["tokens_per_step"] / speed
    return View(
        number=job.number,
        label=label or run.path.name,
        status=status,
        error=record.get("error") if status == "failed" else None,
        steps=(step, steps),
        loss=metrics.get("train/loss"),
        val_loss=metrics.get("val/loss"),
        speed=speed,
        left=left,
    )


def _status(outcome: str, status: str) -> str:
    """Return the status of a job from those of its process and its run."""
    if outcome == "running" and status not in ("running", "done"):
        return "starting"
    return outcome if outcome in ORDER and status != "done" else status


def newest_metrics(metrics: Path) -> dict[str, float]:
    """Return the newest value of each metric from the end of a file, which may be long."""
    if not metrics.is_file():
        return {}
    with metrics.open("rb") as file:
        columns = file.readline()
        file.seek(max(len(columns), file.seek(0, 2) - TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines(keepends=True)
    names = next(csv.reader([columns.decode("utf-8", "replace")]), [])
    found: dict[str, float] = {}
    for row in csv.reader(complete_lines(lines)):
        if len(row) == len(names):  # the first or last row may be incomplete
            values = {name: as_number(text) for name, text in zip(names, row, strict=True)}
            found |= {name: value for name, value in values.items() if value is not None}
    return found


# On a terminal


class Screen:
    """The live table of jobs. While a run's folder is being moved, it shows the last state."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self.sweep, self.console = sweep, console
        self.drawn: RenderableType = ""

    def draw(self) -> RenderableType:
        """Return the table of the current state."""
        with suppress(OSError):
            self.drawn = jobs_table(read_views(self.sweep), self.console.height - FRAME)
        return self.drawn


def jobs_table(views: Sequence[View], room: int) -> RenderableType:
    """Return a table of the jobs. If there are more than `room`, running ones are shown rather than others."""
    first = sorted(views, key=lambda view: (ORDER.index(view.status), view.number))
    shown = sorted(first[: max(1, room)])
    made = Table(box=None, pad_edge=False)
    for title in ("#", "job", "status", "", "step", "loss", "val loss", "tokens/s", "left"):
        is_word = title in ("job", "status", "")
        made.add_column(title, justify="left" if is_word else "right", overflow="fold")
    for view in shown:
        made.add_row(*_cells(view), style=STYLES.get(view.status, ""))
    counts = Counter(view.status for view in views)
    line = ", ".join(f"{counts[status]} {status}" for status in ORDER if counts[status])
    hidden = f"; {len(views) - len(shown)} not shown" if len(shown) < len(views) else ""
    return Group(made, Text(f"{line}{hidden}", style="dim"))


def _cells(view: View) -> list[RenderableType]:
    step, steps = view.steps
    bar = ProgressBar(total=steps, completed=step, width=14) if steps else ""
    status = f"{view.status}: {view.error}" if view.error else view.status
    return [
        str(view.number),
        Text(view.label),
        Text(status),
        bar,
        f"{step:,.0f}/{steps:,.0f}" if steps else "",
        "" if view.loss is None else f"{view.loss:.3f}",
        "" if view.val_loss is None else f"{view.val_loss:.3f}",
        "" if view.speed is None else f"{view.speed:,.0f}",
        "" if view.left is None else duration(view.left),
    ]


# Without a terminal


class LineReporter:
    """A printer of one line whenever a job starts or ends."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.statuses: dict[int, str] = {}

    def report(self, views: Sequence[View]) -> None:
        """Print what has changed since the last call. The first call prints running jobs only."""
        for view in views:
            before = self.statuses.get(view.number)
            status = "running" if view.status == "starting" else view.status
            self.statuses[view.number] = status
            if status != before and (before is not None or status == "running"):
                event = {"running": "starts", "failed": f"failed: {view.error}"}.get(status, status)
                loss = view.val_loss if status == "done" else None
                measured = "" if loss is None else f", val {loss:.3f}"
                self.console.print(
                    f"[{view.number + 1}/{len(views)}] {view.label}: {event}{measured}",
                    soft_wrap=True,
                )


def _report_until(sweep: Sweep, reporter: LineReporter, is_over: Event) -> None:
    while True:
        is_last = is_over.wait(SECONDS)
        with suppress(OSError):  # a folder may be renamed while it is read
            reporter.report(read_views(sweep))
        if is_last:
            return
