"""The callback that stops training when the validation metric no longer improves."""

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from llm.callbacks.checkpoints import score_of
from llm.tasks.base import Task


class EarlyStopping(Callback):
    """A stop after `patience` consecutive validations without improvement (Prechelt 1998).

    Args:
        patience: validations to wait; null never stops early.
        min_delta: smallest improvement of the metric that counts.
        monitor: the metric of a validation.
    """

    state_key = "early_stopping"  # pyright: ignore

    def __init__(
        self, *, patience: int | None = None, min_delta: float = 0.0, monitor: str = "val/loss"
    ) -> None:
        if patience is not None and patience < 1:
            raise ValueError(
                f"patience={patience}: is not a number of validations; use 1 or more, or null"
            )
        self.patience = patience
        self.min_delta = min_delta
        self.monitor = monitor
        self.best = math.inf
        self.waited = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the validation with the best, and stop if patience is exhausted."""
        assert isinstance(pl_module, Task)
        if trainer.sanity_checking:  # before the first step
            return
        score = score_of(pl_module, self.monitor)[0]
        if score < self.best - self.min_delta:
            self.best, self.waited = score, 0
        else:
            self.waited += 1
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return the best value of the metric and the number of validations since."""
        return {"monitor": self.monitor, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count, unless it belongs to another metric."""
        if state_dict["monitor"] == self.monitor:
            self.best, self.waited = state_dict["best"], state_dict["waited"]
