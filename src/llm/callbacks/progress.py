"""A progress bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Collection
from typing import Any

import lightning as L
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from llm.callbacks.base import StepCallback
from llm.tasks.base import Task
from llm.terminal.bars import progress_bar
from llm.terminal.console import new_console

SHOWN = {
    "train/loss": "loss {:.3f}",
    "val/loss": "val {:.3f}",
    "val/perplexity": "ppl {:.1f}",
    "val/bits_per_byte": "{:.3f} bits/byte",
    "val/accuracy": "accuracy {:.1%}",
    "val/balanced_accuracy": "balanced {:.1%}",
    "val/margin": "margin {:.3f}",
    "train/reward": "reward {:.3f}",
    "val/reward": "val reward {:.3f}",
    "speed/tokens_per_second": "{:,.0f} tok/s",
}
# These fit into 80 columns: no task has all of them.
ON_THE_BAR = ("train/loss", "val/perplexity", "val/accuracy", "speed/tokens_per_second")


class ProgressBar(StepCallback):
    """A display of steps, logged metrics and the time left.

    Args:
        seconds: seconds between two lines if the output is not a terminal.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self.console = new_console(highlight=True)
        self._bar: Progress | None = None  # of the training or of the test
        self._task_id = TaskID(0)
        self._last_refresh = 0.0
        self._last_line = 0  # the step of the last plain line

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar."""
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        self._bar = Progress(
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[metrics]}", markup=False),
            console=self.console,
        )
        self._bar.start()
        self._task_id = self._bar.add_task(
            "training", total=trainer.max_steps, completed=trainer.global_step, metrics=""
        )

    def after_step(self, trainer: L.Trainer, task: Task) -> None:
        """Move the bar, at most ten times a second; without a terminal print a line after `seconds`."""
        now = time.monotonic()
        if now - self._last_refresh >= (self.seconds if self._bar is None else 0.1):
            self._last_refresh = now
            self._show(trainer, task)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print a line with the metrics of the validation."""
        assert isinstance(pl_module, Task)
        self._last_refresh = time.monotonic()
        self._print(trainer, pl_module, step=trainer.global_step)

    def _show(self, trainer: L.Trainer, task: Task) -> None:
        if self._bar is not None:
            text = progress_line(task, ON_THE_BAR)
            self._bar.update(self._task_id, completed=trainer.global_step, metrics=text)
        elif (newest := max(task.metric_steps.values(), default=0)) > self._last_line:
            self._print(trainer, task, step=newest)

    def _print(self, trainer: L.Trainer, task: Task, *, step: int) -> None:
        """Print a line with the metrics measured at this step."""
        self._last_line = step
        shown = [name for name, at in task.metric_steps.items() if at == step]
        if trainer.is_global_zero:
            self.console.print(f"step {step}/{trainer.max_steps}: {progress_line(task, shown)}")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the progress of the test."""
        if trainer.is_global_zero:
            self._bar = progress_bar()
            self._bar.start()
            self._task_id = self._bar.add_task("testing", total=sum(trainer.num_test_batches))

    def on_test_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Move the bar; stop it after the last batch, before other callbacks print."""
        if self._bar is not None:
            self._bar.advance(self._task_id)
            if self._bar.finished:
                self._close()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the full bar and stop it."""
        assert isinstance(pl_module, Task)
        if self._bar is not None:
            self._show(trainer, pl_module)
            self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Stop the bar, so that the terminal is usable."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def progress_line(task: Task, names: Collection[str]) -> str:
    """Return the most important logged metrics in one line; empty without any."""
    logged = task.metrics
    return ", ".join(
        form.format(logged[name])
        for name, form in SHOWN.items()
        if name in names and name in logged
    )
