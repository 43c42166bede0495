"""Checks for divergence, which stop a run before it writes a checkpoint."""

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from llm.dtensor import to_local
from llm.tasks.base import Task
from llm.tasks.non_finite import DivergedError, require_finite_loss


def require_finite(task: L.LightningModule, step: int) -> None:
    """Raise DivergedError if a parameter (its shard on this device) contains a NaN or an infinity."""
    for name, parameter in task.named_parameters():
        if not torch.isfinite(to_local(parameter)).all():
            raise DivergedError(f"{name.removeprefix('model.')} is not finite", step)


def require_finite_state(state: Mapping[Any, Any], step: int) -> None:
    """Raise DivergedError if the optimizer's state, by index of the parameter, contains a NaN or an infinity."""
    for number, values in state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and not torch.isfinite(to_local(value)).all():
                raise DivergedError(
                    f"{name} of parameter {number} in the optimizer's state is not finite", step
                )


class Gradients(Callback):
    """A stop at a non-finite loss, at which Lightning would continue, and a warning at gradient spikes.

    Checks the loss in every step on the CPU, but only at logged steps on other devices, because reading it
    synchronizes with them.

    Args:
        spike: ratio of the gradient norm to its recent median above which to warn.
        window: number of logged norms in the median.
    """

    def __init__(self, spike: float = 10.0, window: int = 50) -> None:
        if spike <= 1:
            raise ValueError(f"spike={spike}: is not above 1; use a factor such as 10")
        self.spike = spike
        self.norms: deque[float] = deque(maxlen=window)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Check the loss and the gradient norm."""
        assert isinstance(pl_module, Task)
        is_last = pl_module.ends_step(batch_idx)
        is_logged = is_last and trainer.global_step % pl_module.log_every == 0
        if pl_module.device.type != "cpu" and not is_logged:
            return
        require_finite_loss("loss", outputs["loss"].item(), step=trainer.global_step)
        if is_logged and pl_module.gradient_norm is not None:
            self._watch(pl_module.gradient_norm.item(), trainer.global_step)

    def _watch(self, norm: float, step: int) -> None:
        usual = median(self.norms) if len(self.norms) >= 5 else float("inf")
        if norm > self.spike * usual:
            rank_zero_warn(
                f"step {step}: gradient norm {norm:.3g} is {norm / usual:.0f} × its median; if the loss rises too, use "
                "a lower optimizer.lr, or a lower trainer.gradient_clip such as 0.5"
            )
        self.norms.append(norm)
