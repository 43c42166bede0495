"""Stop when validation no longer improves."""

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from llm.callbacks.checkpoints import score_of
from llm.tasks.base import Task


class EarlyStopping(Callback):
    """Stop after `patience` validations in a row none of which is better than the best (Prechelt 1998).

    Args:
        patience: validations to wait; null never stops early.
        min_delta: by how much the metric must improve to count as better.
        monitor: the metric that says how good a validation is.
    """

    def __init__(
        self, *, patience: int | None = None, min_delta: float = 0.0, monitor: str = "val/loss"
    ) -> None:
        if patience is not None and patience < 1:
            raise ValueError(
                f"patience={patience}: give a number of validations from 1 on, or null"
            )
        self.patience = patience
        self.min_delta = min_delta
        self.monitor = monitor
        self.best = math.inf
        self.waited = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count this validation for or against going on."""
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

    @property
    def state_key(self) -> str:
        """The name of the state in a checkpoint, whatever the class is called."""
        return "early_stopping"

    def state_dict(self) -> dict[str, Any]:
        """The best value of the metric and the validations since."""
        return {"monitor": self.monitor, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting, unless another metric was watched."""
        if state_dict.get("monitor", "val/loss") == self.monitor:
            self.best, self.waited = state_dict["best"], state_dict["waited"]
