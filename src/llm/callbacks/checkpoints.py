"""The callback that writes checkpoints: the best and the last."""

import math
from pathlib import Path
from typing import Any

import lightning as L

from llm import distributed
from llm.callbacks.base import StepCallback
from llm.callbacks.gradient_monitor import require_finite, require_finite_state
from llm.checkpoints.checkpoint_file import header_of
from llm.comparison.rows import direction
from llm.config.errors import UserError, suggestion
from llm.runs import Run
from llm.tasks.base import Task

Score = tuple[float, ...]
WORST: Score = (math.inf, math.inf)


def score_of(task: Task, monitor: str) -> Score:
    """Return the score of the newest validation: the monitored metric, then the loss; lower is better.

    Raises:
        UserError: the task does not measure this metric.
    """
    if monitor not in task.metrics:
        measured = [name for name in task.metrics if name.startswith("val/")]
        raise UserError(
            f"monitor={monitor}: this task does not measure it; {suggestion(monitor, measured)}"
        )
    return direction(monitor) * task.metrics[monitor], task.metrics["val/loss"]


class Checkpoints(StepCallback):
    """Writer of `last.ckpt` (everything for an exact resume) and `best.ckpt` (weights of the best validation).

    Both are written after each validation, so that a resumed run does not repeat it. Weights that are not finite are
    never written. The previous `last.ckpt` is kept too, in case the newer one is damaged on disk.

    Args:
        every: steps between writes of `last.ckpt`; null writes it at validations only.
        monitor: the metric of the best validation; `val/loss` breaks ties.

    Attributes:
        saved_step: step of `last.ckpt`; -1 before training.
    """

    state_key = "checkpoints"  # pyright: ignore

    def __init__(self, every: int | None = None, monitor: str = "val/loss") -> None:
        if every is not None and every < 1:
            raise ValueError(f"every={every}: is not a number of steps; use 1 or more, or null")
        self.every = every
        self.monitor = monitor
        self.best = WORST
        self.best_step = 0
        self.saved_step = -1

    def after_step(self, trainer: L.Trainer, task: Task) -> None:
        """Write `last.ckpt` if it is due, unless a validation follows, which writes it."""
        is_due = self.every is not None and trainer.global_step % self.every == 0
        if is_due and not validates_now(trainer):
            self.save_last(trainer, task)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write `last.ckpt`, then `best.ckpt` if this validation is the best."""
        assert isinstance(pl_module, Task)
        if trainer.sanity_checking:  # before the first step
            return
        score = score_of(pl_module, self.monitor)
        is_best = score < self.best
        if is_best:
            self.best, self.best_step = score, trainer.global_step
        self.save_last(trainer, pl_module)
        if is_best:
            self._save_best(trainer, pl_module)

    def save_last(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write `last.ckpt` once per step; raise DivergedError if the weights are not finite."""
        if self.saved_step == trainer.global_step:
            return
        require_finite(pl_module, trainer.global_step)
        # A resumed run does not log the steps before the checkpoint again, so their metrics must be on disk.
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(_run(trainer).last, storage_options={"keeps_previous": True})
        self.saved_step = trainer.global_step

    def _save_best(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        require_finite(pl_module, trainer.global_step)
        trainer.save_checkpoint(_run(trainer).best, weights_only=True)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Require that the optimizer's state is finite.

        Raises:
            DivergedError: a tensor of the state contains a NaN or an infinity.
        """
        for state in checkpoint["optimizer_states"]:
            require_finite_state(state["state"], trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the best validation so far, so that a resumed run does not replace it by a worse one."""
        return {"monitor": self.monitor, "best": list(self.best), "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the saved best, unless it belongs to another metric."""
        if state_dict["monitor"] == self.monitor:
            self.best = tuple(state_dict["best"])
            self.best_step = state_dict["best_step"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the step of `last.ckpt` of a resumed run; write a missing `best.ckpt`."""
        self.saved_step = trainer.global_step
        self.on_fit_end(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the `best.ckpt` that a killed run did not write; forget that best if the weights have changed since."""
        if self.best_step == 0:
            return
        if distributed.broadcast(_step_of(_run(trainer).best)) >= self.best_step:
            return
        if trainer.global_step == self.best_step:
            self._save_best(trainer, pl_module)
        else:
            self.best, self.best_step = WORST, 0


def _run(trainer: L.Trainer) -> Run:
    return Run(Path(trainer.default_root_dir))


def _step_of(path: Path) -> int:
    """Return the optimizer step of a checkpoint; -1 if it is missing or unreadable."""
    try:
        return int(header_of(path)["global_step"])
    except (OSError, UserError, LookupError):
        return -1


def validates_now(trainer: L.Trainer) -> bool:
    """Return whether a validation follows the training batch that just ended."""
    interval = trainer.val_check_interval
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return ready % interval == 0 or trainer.global_step >= trainer.max_steps
