"""A sweep while it runs: a table that moves on a terminal, a line for each event elsewhere.

All of it is read from files, so it does not matter who runs the jobs, or where.
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

SECONDS = 1.0  # from one look to the next
TAIL = 1 << 14  # bytes at the end of metrics.csv in which the newest figures stand
FRAME = 6  # lines of a terminal that are not jobs
ENDED = ("done", "failed")
ORDER = ("running", "starting", "failed", "interrupted", "elsewhere", "pending", "done")


class View(NamedTuple):
    """A job at one moment; None where nothing is known.

    Attributes:
        number: its place in the sweep.
        label: what tells it from the other jobs.
        status: where it stands: that of its run, `starting` before there is one, or `elsewhere`.
        error: why it failed.
        steps: optimizer steps taken, and how many there will be.
        loss: the newest training loss.
        val_loss: the newest validation loss.
        speed: training tokens a second.
        left: seconds to go.
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
def watched(sweep: Sweep, console: Console | None = None) -> Iterator[None]:
    """Show a sweep as long as the block lasts.

    Args:
        sweep: which.
        console: where to; standard output by default.
    """
    console = console or new_console()
    if console.is_terminal:
        screen = Screen(sweep, console)
        with Live(get_renderable=screen.draw, console=console, refresh_per_second=1 / SECONDS):
            yield
        return
    teller, is_over = LineReporter(console), Event()
    teller.tell(look(sweep))
    thread = Thread(target=_tell, args=(sweep, teller, is_over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def follow(sweep: Sweep, console: Console | None = None) -> None:
    """Show a sweep that another process runs, until all of its jobs have ended or Ctrl-C."""
    with watched(sweep, console):
        while any(view.status not in ENDED for view in look(sweep)):
            time.sleep(SECONDS)


# What there is to see


def look(sweep: Sweep) -> list[View]:
    """All jobs as they are now."""
    jobs = sweep.jobs
    words = differing_words([job.overrides for job in jobs])
    # A name given by a sweep repeats the other words.
    labels = (" ".join(w for w in own if key_of(w) != "name") for own in words)
    return [_view(job, label) for job, label in zip(jobs, labels, strict=True)]


def _view(job: Job, label: str) -> View:
    run = job.run
    record, metrics = run.record, newest(run.metrics)
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
    """Where a job stands, from how its process goes and what its run says."""
    if outcome == "running" and status not in ("running", "done"):
        return "starting"
    return outcome if outcome in ORDER and status != "done" else status


def newest(metrics: Path) -> dict[str, float]:
    """The newest value of each metric near the end of a metrics file, however long it is."""
    if not metrics.is_file():
        return {}
    with metrics.open("rb") as file:
        columns = file.readline()
        file.seek(max(len(columns), file.seek(0, 2) - TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines(keepends=True)
    names = next(csv.reader([columns.decode("utf-8", "replace")]), [])
    found: dict[str, float] = {}
    for row in csv.reader(complete_lines(lines)):
        if len(row) == len(names):  # not cut short at either end
            values = {name: as_number(text) for name, text in zip(names, row, strict=True)}
            found |= {name: value for name, value in values.items() if value is not None}
    return found


# On a terminal


class Screen:
    """The table as it is now; as it was a moment ago where a run's folder is just being moved.

    Args:
        sweep: whose jobs.
        console: the terminal.
    """

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self.sweep, self.console = sweep, console
        self.drawn: RenderableType = ""

    def draw(self) -> RenderableType:
        """Look once more."""
        with suppress(OSError):
            self.drawn = jobs_table(look(self.sweep), self.console.height - FRAME)
        return self.drawn


def jobs_table(views: Sequence[View], room: int) -> RenderableType:
    """The jobs, with those first that move where there are too many to show.

    Args:
        views: all jobs.
        room: how many lines there are for them.
    """
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


# Elsewhere


class LineReporter:
    """Prints a line when a job starts or ends.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.told: dict[int, str] = {}

    def tell(self, views: Sequence[View]) -> None:
        """Print what has changed since the last time; what was so from the beginning is no news."""
        for view in views:
            before = self.told.get(view.number)
            status = "running" if view.status == "starting" else view.status
            self.told[view.number] = status
            if status != before and (before is not None or status == "running"):
                what = {"running": "starts", "failed": f"failed: {view.error}"}.get(status, status)
                loss = view.val_loss if status == "done" else None
                measured = "" if loss is None else f", val {loss:.3f}"
                self.console.print(
                    f"[{view.number + 1}/{len(views)}] {view.label}: {what}{measured}",
                    soft_wrap=True,
                )


def _tell(sweep: Sweep, teller: LineReporter, is_over: Event) -> None:
    while True:
        is_last = is_over.wait(SECONDS)
        with suppress(OSError):  # a folder may be renamed between two looks
            teller.tell(look(sweep))
        if is_last:
            return
