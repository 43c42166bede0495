"""Progress display."""

import sys
import time

from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from llm.terminal.console import new_console

SECONDS = 10.0  # between two lines


def progress_bar() -> Progress:
    """Return a bar on standard error; without a terminal, it prints a line every ten seconds."""
    kind = Progress if sys.stderr.isatty() else Lines
    return kind(
        TextColumn("{task.description}", style="progress.description", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=new_console(stderr=True, highlight=True),
        transient=True,
        disable=kind is Lines,
    )


class Lines(Progress):
    """A progress display for logs, such as `responses: 16 of 110`. Short tasks print nothing."""

    def start(self) -> None:
        """Start to count the seconds."""
        self._last_line = time.monotonic()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Move a task forward."""
        super().advance(task_id, advance)
        self._print(task_id)

    def _print(self, task_id: TaskID) -> None:
        now = time.monotonic()
        if now - self._last_line < SECONDS:
            return
        self._last_line = now
        task = next(task for task in self.tasks if task.id == task_id)
        total = "" if task.total is None else f" of {task.total:,.0f}"
        self.console.print(f"{task.description}: {task.completed:,.0f}{total}", soft_wrap=True)
