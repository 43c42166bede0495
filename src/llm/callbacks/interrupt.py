"""Handling of Ctrl-C and other signals: finish the step, save, and stop."""

import os
import signal
import threading
from collections.abc import Mapping
from typing import Any

import lightning as L

from llm import distributed, signals
from llm.callbacks.base import StepCallback
from llm.callbacks.checkpoints import Checkpoints, validates_now
from llm.tasks.base import Task
from llm.terminal.console import new_console


class InterruptedRunError(BaseException):
    """A signal stopped the run after a whole step; its last checkpoint is on disk.

    It is not an Exception, because a sweep must not continue with its next job, and not a KeyboardInterrupt, because
    Lightning catches those.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupt(StepCallback):
    """A callback that saves and stops after the current step at the first signal, and at once at the second.

    Only a run that stops between two steps resumes exactly. All ranks stop at the same step, because each waits for
    the gradients of the others.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._ballot = distributed.MaxVote()
        self._process = os.getpid()
        self._previous: Mapping[signal.Signals, Any] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install signal handlers, which Python allows in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signals.listen(self._receive)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the previous signal handlers."""
        signals.restore_handlers(self._previous)
        self._previous = {}

    def _receive(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a data-loading worker inherits this handler
            return
        if self.received is not None:
            raise signals.Stopped(number)
        self.received = signal.Signals(number)
        if distributed.is_first():
            new_console(stderr=True, highlight=True).print(
                f"\n{self.received.name}: finishing this step and saving; send it again to stop at once."
            )

    def after_step(self, trainer: L.Trainer, task: Task) -> None:
        """Save and stop, unless a validation follows."""
        number = self._ballot.largest(self.received or 0)
        if number and not validates_now(trainer):
            self._stop(trainer, task, number=number)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop after the validation of the step."""
        number = self._ballot.largest(self.received or 0)
        if number and trainer.sanity_checking:  # before the first step: nothing to save
            raise InterruptedRunError(number)
        if number and trainer.global_step < trainer.max_steps:
            self._stop(trainer, pl_module, number=number)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop before the test if a signal came during the last step."""
        number = max(distributed.gather(int(self.received or 0)))
        if number:
            raise InterruptedRunError(number)

    def _stop(self, trainer: L.Trainer, pl_module: L.LightningModule, *, number: int) -> None:
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, Checkpoints):
                callback.save_last(trainer, pl_module)
        raise InterruptedRunError(number)
