"""Recording how a run ended: done, interrupted or failed, and how to resume it."""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.loggers import Logger

from llm import distributed, signals
from llm.callbacks.checkpoints import Checkpoints
from llm.callbacks.interrupt import Interrupt, InterruptedRunError
from llm.loggers.wandb import WandbLogger
from llm.runs import Run
from llm.tasks.non_finite import DivergedError
from llm.terminal.console import new_console
from llm.training.next_commands import NextCommands
from llm.training.resumption import Resumption

C = TypeVar("C", bound=L.Callback)


@dataclass
class Progress:
    """The progress of a run, which may be trained in several sessions."""

    resumed: int = 0  # the step of the checkpoint that this session began from
    trainer: L.Trainer | None = None
    loggers: Sequence[Logger] = ()
    seconds: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds of training and validation, in all sessions."""
        return round(self.seconds + time.perf_counter() - self.since, 1)

    @property
    def steps(self) -> int:
        """Optimizer steps taken, in all sessions."""
        return max(self.resumed, self.trainer.global_step if self.trainer is not None else 0)

    @property
    def saved_steps(self) -> int:
        """Optimizer steps at the newest checkpoint."""
        return max([self.resumed, *(each.saved_step for each in self._callbacks(Checkpoints))])

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint; None if there is none."""
        return next((each.best_step for each in self._callbacks(Checkpoints)), None)

    @property
    def received(self) -> int:
        """The signal that stopped training; 0 if there was none."""
        return max([0, *(each.received or 0 for each in self._callbacks(Interrupt))])

    def _callbacks(self, kind: type[C]) -> list[C]:
        callbacks: list[L.Callback] = getattr(self.trainer, "callbacks", [])
        return [each for each in callbacks if isinstance(each, kind)]

    def end_loggers(self, exit_code: int) -> None:
        """End a run on W&B; otherwise the next job of this process would be logged to it."""
        loggers, self.loggers = self.loggers, ()
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.finish(exit_code)


@contextmanager
def recording(run: Run, resume: Resumption, commands: NextCommands) -> Iterator[Progress]:
    """Record how a run ended, and print the command that resumes or rescues it, if it did not finish."""
    before = dict(run.record)
    progress = Progress(resume.step, seconds=before.get("seconds", 0.0))
    try:
        yield progress
    except BaseException as error:
        stop = interruption(error, progress)
        with suppress(OSError):  # if the disk is full, the last record remains
            record_end(run, before, progress, error, was_stopped=stop is not None)
        if stop is not None:
            status = signals.status_of(signals.number_of(stop))
            report_interruption(stop, run, progress, commands.resume)
            progress.end_loggers(status)
            raise SystemExit(status) from None
        if isinstance(error, DivergedError):
            error.say_more(
                f"To resume from step {progress.saved_steps}: {commands.rescue}"
                if progress.saved_steps
                else f"No checkpoint was saved. To train again: {commands.restart}"
            )
        progress.end_loggers(1)
        raise


def record_end(
    run: Run,
    before: Mapping[str, Any],
    progress: Progress,
    error: BaseException,
    *,
    was_stopped: bool,
) -> None:
    """Record that a run was interrupted or failed, unless it is done already."""
    if run.status == "done":
        run.update()  # the signal may have interrupted the writing of the record
    elif before.get("status") == "done" and progress.steps == progress.resumed:
        run.record = {}
        run.update(**before)
    elif was_stopped:
        run.finish("interrupted", steps=progress.saved_steps, seconds=progress.elapsed)
    else:
        run.finish("failed", steps=progress.steps, error=f"{type(error).__name__}: {error}")


def interruption(error: BaseException, progress: Progress) -> BaseException | None:
    """Return the exception of the signal that stopped a run; None if there was none.

    A signal to all processes of a job also ends the data loader's workers, and then the step fails.
    """
    if progress.received and "DataLoader worker" in str(error):
        return signals.Stopped(progress.received)
    kinds = (InterruptedRunError, KeyboardInterrupt)
    found = (each for each in (error, error.__context__) if isinstance(each, kinds))
    return next(found, None) or signals.find_stop(error)


def report_interruption(stop: BaseException, run: Run, progress: Progress, command: str) -> None:
    """Print which step of an interrupted run is saved, and how to resume it."""
    is_immediate = signals.number_of(stop) == signal.SIGINT and not isinstance(
        stop, InterruptedRunError
    )
    how = "immediately" if is_immediate else f"by {stop}"
    if distributed.is_first():
        new_console(stderr=True).print(
            f"stopped {how}{describe_saved(run, progress)}.\nTo resume: {command}", soft_wrap=True
        )


def describe_saved(run: Run, progress: Progress) -> str:
    """Return the last step of an interrupted run, and which one is saved."""
    steps, saved = progress.steps, progress.saved_steps
    if run.status == "done":
        return f"; the run is done, with {run.record['steps']} steps"
    if steps == 0:
        return " before the first step; there was nothing to save"
    if saved == 0:
        return f" after step {steps}; nothing is saved"
    if steps > saved:
        return f" after step {steps}; step {saved} is saved"
    return f" after step {steps}; it is saved"
