"""Stop when validation no longer improves."""

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from llm.tasks.task import Task


class EarlyStopping(Callback):
    """Stop after `patience` validations in a row without a better `val/loss` (Prechelt 1998).

    Args:
        patience: validations to wait; null never stops early.
        min_delta: by how much a loss must fall to count as better, in nats.
    """

    def __init__(self, patience: int | None = None, min_delta: float = 0.0) -> None:
        if patience is not None and patience < 1:
            raise ValueError(
                f"patience={patience}: give a number of validations from 1 on, or null"
            )
        self.patience = patience
        self.min_delta = min_delta
        self.best = math.inf
        self.waited = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count this validation for or against going on."""
        assert isinstance(pl_module, Task)
        if trainer.sanity_checking:  # before the first step
            return
        loss = pl_module.figures["val/loss"]
        if loss < self.best - self.min_delta:
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The best loss and the validations since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]
