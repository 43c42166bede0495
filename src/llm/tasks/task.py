"""What every training objective shares: optimizer, schedule, clipping, and what is logged."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

Batch = dict[str, Tensor]
Groups = list[dict[str, Any]]


class Task(L.LightningModule):
    """A model, an objective, and how the one learns from the other.

    A subclass says what a batch costs in `step`. Metrics stay on the device and leave it every
    `log_every` steps only: a value read is a wait for the GPU.

    Args:
        model: the network; it knows nothing of training.
        optimizer: makes the optimizer from parameter groups.
        schedule: `(step, max_steps)` to a multiplier of every group's learning rate.
        parameter_groups: sorts a model's trainable parameters into groups, with and without decay.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Groups], Optimizer],
        schedule: Callable[[int, int], float],
        parameter_groups: Callable[[nn.Module], Groups],
    ) -> None:
        super().__init__()
        self.model = model
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.parameter_groups = parameter_groups
        self.log_every = 10
        self.gradient_norm: Tensor | None = None
        self.figures: dict[str, float] = {}
        self._losses: list[Tensor] = []  # of the micro-batches since they were last logged

    @abstractmethod
    def step(self, batch: Batch) -> Tensor:
        """The training loss of one batch, a scalar with gradient."""

    def compile_step(self) -> None:
        """Compile the model together with its loss: one graph, and Lightning stays outside of it."""
        self.step = torch.compile(self.step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a micro-batch; the mean of them is what gets logged."""
        loss = self.step(batch)
        self._losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> Optimizer:
        """The optimizer over the groups, each of which remembers its peak learning rate."""
        optimizer = self.make_optimizer(self.parameter_groups(self.model))
        # A fused optimizer would unscale fp16 gradients inside its step, after clipping saw them scaled.
        if hasattr(optimizer, "_step_supports_amp_scaling"):
            optimizer._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Set the learning rates, a pure function of the step, and let the optimizer go one step.

        A scheduler object would hold state to save and cost more than the arithmetic.
        """
        step, max_steps = self.global_step, self.trainer.max_steps
        multiplier = self.schedule(min(step, max_steps - 1), max_steps)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
        optimizer.step(closure=optimizer_closure)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to a global norm and keep the norm from before (Pascanu et al. 2013)."""
        if gradient_clip_val is not None or self.is_log_step:
            limit = float("inf") if gradient_clip_val is None else gradient_clip_val
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self.gradient_norm = nn.utils.clip_grad_norm_(parameters, limit).detach()

    def ends_step(self, batch_idx: int) -> bool:
        """Whether the micro-batch of this number is the last of its optimizer step."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ask for a validation after the last step: Lightning's own come at an interval only."""
        if self.global_step >= self.trainer.max_steps:
            self.trainer.should_stop = True

    @property
    def is_log_step(self) -> bool:
        """Whether the optimizer step now under way is one whose metrics are logged."""
        return (self.global_step + 1) % self.log_every == 0

    def take_training_metrics(self) -> dict[str, float]:
        """Mean training loss since the last call, gradient norm and learning rates; waits for the device."""
        metrics: dict[str, float] = {}
        if self._losses:
            metrics["train/loss"] = (
                torch.stack([each.to(self.device) for each in self._losses]).mean().item()
            )
            self._losses.clear()
        if self.gradient_norm is not None:
            metrics["train/gradient_norm"] = self.gradient_norm.item()
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        rates = {group.get("name", "all"): group["lr"] for group in optimizer.param_groups}
        metrics["train/learning_rate"] = next(iter(rates.values()))
        if len(set(rates.values())) > 1:
            metrics |= {f"train/learning_rate_{name}": rate for name, rate in rates.items()}
        return metrics

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the losses not yet logged, so that a resumed run logs what an uninterrupted one does."""
        checkpoint["losses"] = list(self._losses)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the losses not yet logged."""
        self._losses = list(checkpoint["losses"])

    def record(self, metrics: Mapping[str, float]) -> None:
        """Hand metrics of the present step to every logger; the newest of each stay in `figures`."""
        self.figures |= metrics
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(metrics), step=self.global_step)
