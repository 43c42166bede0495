"""The base class of callbacks that act after whole optimizer steps."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from llm.tasks.base import Task


class StepCallback(Callback):
    """A callback that acts after each optimizer step, of one or more micro-batches."""

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Call `after_step` if the micro-batch is the last of its step."""
        assert isinstance(pl_module, Task)
        if pl_module.ends_step(batch_idx):
            self.after_step(trainer, pl_module)

    def after_step(self, trainer: L.Trainer, task: Task) -> None:
        """Act after an optimizer step."""
        raise NotImplementedError
