"""A progress bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Collection
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

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


class ProgressBar(Callback):
    """A display of steps, loss, validation perplexity, speed and the time left.

    Reads only logged metrics: a bar must not make training wait for the device.

    Args:
        seconds: seconds between two plain lines if the output is not a terminal.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self.console = new_console(highlight=True)
        self.progress: Progress | None = None
        self._testing: Progress | None = None
        self._task_id: Any = None
        self._last_refresh = 0.0
        self._last_line = 0  # the step of the last plain line

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar."""
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        self.progress = Progress(
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[metrics]}", markup=False),
            console=self.console,
        )
        self.progress.start()
        self._task_id = self.progress.add_task(
            "training", total=trainer.max_steps, completed=trainer.global_step, metrics=""
        )

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar, at most ten times a second; without a terminal print a line now and then."""
        now = time.monotonic()
        if now - self._last_refresh < (self.seconds if self.progress is None else 0.1):
            return
        self._last_refresh = now
        self._show(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the metrics of the validation as a permanent line."""
        self._last_refresh = time.monotonic()
        self._print(trainer, pl_module, step=trainer.global_step)

    def _show(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.progress is not None:
            text = progress_line(pl_module, ON_THE_BAR)
            self.progress.update(self._task_id, completed=trainer.global_step, metrics=text)
        else:
            assert isinstance(pl_module, Task)
            newest = max(pl_module.metric_steps.values(), default=0)
            if newest > self._last_line:
                self._print(trainer, pl_module, step=newest)

    def _print(self, trainer: L.Trainer, pl_module: L.LightningModule, *, step: int) -> None:
        """Print a line with the metrics measured at this step."""
        assert isinstance(pl_module, Task)
        self._last_line = step
        shown = [name for name, at in pl_module.metric_steps.items() if at == step]
        if trainer.is_global_zero:
            self.console.print(
                f"step {step}/{trainer.max_steps}: {progress_line(pl_module, shown)}"
            )

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the progress of the test, which may take minutes."""
        if trainer.is_global_zero:
            self._testing = progress_bar()
            self._testing.start()
            self._task_id = self._testing.add_task("testing", total=sum(trainer.num_test_batches))

    def on_test_batch_end(  # noqa: PLR0917
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar; remove it after the last batch, before other callbacks print."""
        if self._testing is not None:
            self._testing.advance(self._task_id)
            if batch_idx + 1 == sum(trainer.num_test_batches):
                self._testing.stop()
                self._testing = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at the full bar."""
        if self.progress is not None:
            self._show(trainer, pl_module)
            self.progress.stop()
            self.progress = None

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Stop the bars, so that the terminal is usable."""
        for bar in (self.progress, self._testing):
            if bar is not None:
                bar.stop()
        self.progress = self._testing = None


def progress_line(task: L.LightningModule, names: Collection[str] = SHOWN.keys()) -> str:
    """Return the most important logged metrics in one line; empty before the first."""
    assert isinstance(task, Task)
    logged = task.metrics
    return ", ".join(
        form.format(logged[name])
        for name, form in SHOWN.items()
        if name in names and name in logged
    )
