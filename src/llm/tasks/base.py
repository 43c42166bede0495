"""The base class of training objectives: optimizer, schedule, clipping and logged metrics."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from llm import distributed
from llm.config.build import config_errors_at
from llm.data.base import DataModule
from llm.dtensor import to_local
from llm.optim.clipping import clip_gradients
from llm.runs import Run
from llm.tasks.expert_balancing import ExpertBalancing
from llm.tasks.non_finite import require_finite_loss

Batch = dict[str, Tensor]
Groups = list[dict[str, Any]]


# Values of `Task.requires`.
CAUSAL = {
    "causal": "sees the tokens that it would have to predict; finetune it as a classifier "
    "(experiment=classify), or choose a causal model such as model=gpt"
}
GENERATES = {"generates": "cannot generate text; choose a model that can, such as model=gpt"}

# Weighted losses are divided by this number of targets, because fp16 overflows at 65,504.
UNIT = 1024


class Task(L.LightningModule):
    """A model with a training objective, an optimizer and a learning rate schedule.

    A subclass computes the training loss in `step` and the metrics of an evaluation in `evaluate` and
    `results`.

    `training_step` returns the loss of a micro-batch, and Lightning adds up the gradients. For the last
    micro-batch it calls `optimizer_step` first, which sets the learning rate and calls the optimizer. The
    optimizer then calls `training_step` and `configure_gradient_clipping` before it updates the parameters.

    Losses are read every `log_every` steps only, because reading a value waits for the GPU.

    Args:
        model: the network.
        optimizer: makes the optimizer from parameter groups.
        schedule: maps `(step, max_steps)` to a multiplier of every group's learning rate.
        parameter_groups: sorts a model's trainable parameters into groups, with and without decay.

    Attributes:
        data_module: the class of data modules that the task learns from.
        requires: capabilities that the model must have, each with the error message for a model without it.
        command: the command of `llm` that uses a run of this task.
        metrics: the newest value of each metric that was recorded.
        metric_steps: the step of each of these values.
        tested: prefix of a test's metrics: `test`, or `whole` for the whole validation part.
        is_pretrained: whether the model begins with pretrained weights.
        is_adapted: whether it has an adapter; checkpoints then leave out the frozen weights.
        shard: divides the model among the devices of a mesh, in place; None leaves it whole.
        peers: ranks that train other parameters of the same model; None if each rank trains all.
        is_sharded: whether the model is divided, so that all ranks must run it together.
    """

    data_module: ClassVar[type[DataModule]] = DataModule
    requires: ClassVar[Mapping[str, str]] = {}
    command: ClassVar[str] = "generate"

    def __init__(
        self,
        model: nn.Module,
        *,
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
        self.metrics: dict[str, float] = {}
        self.metric_steps: dict[str, int] = {}
        self.tested: Literal["test", "whole"] = "test"
        self.is_pretrained = False
        self.is_adapted = False
        self.shard: Callable[[nn.Module, DeviceMesh], None] | None = None
        self.peers: ProcessGroup | None = None
        self.is_sharded = False
        # Loss and number of targets of this rank's micro-batches since the last logged step.
        self._losses: list[tuple[Tensor, Tensor | None]] = []
        self._rates: list[float] = []  # the peak learning rate of each group
        self._targets: list[Tensor] = []  # of the current optimizer step, per micro-batch

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; bypass `nn.Module` for `_current_fx_name`, which Lightning sets 34 times per step."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def configure_model(self) -> None:
        """Divide the model among devices, once: Lightning calls this before each fit and test."""
        shard, self.shard = self.shard, None
        if shard is not None and self.device_mesh is not None:
            with config_errors_at("hardware.strategy"):
                shard(self.model, self.device_mesh)

    @property
    def data_parallel(self) -> int:
        """Number of data-parallel ranks."""
        return (self.trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)

    def check(self, data: DataModule) -> None:
        """Check that this task can train the model on the data, before anything starts.

        Raises:
            ValueError: it cannot.
        """

    @abstractmethod
    def step(self, batch: Batch) -> Tensor:
        """Return the training loss of one batch, a scalar with gradient."""

    def weight(self, batch: Batch) -> Tensor | None:
        """Return the number of targets of a batch; None if all batches have the same number.

        Micro-batches and ranks are weighted by it, so that the gradient of an optimizer step is that of
        the mean over all its targets.
        """
        return None

    def training_metrics(self) -> dict[str, float]:
        """Return further training metrics since the last call; called at logged steps only."""
        return {}

    @abstractmethod
    def evaluate(self, batch: Batch) -> None:
        """Add a batch to the sums of the current evaluation."""

    @abstractmethod
    def results(self) -> dict[str, float]:
        """Return the metrics of all ranks' batches since the last call, including `loss`."""

    def warnings(self) -> list[str]:
        """Return problems that the newest evaluation found in the model, one line each."""
        return []

    def compile_step(self) -> None:
        """Compile the model together with its loss as one graph."""
        self.step = torch.compile(self.step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a micro-batch and of the balance of experts, weighted by its number of targets.

        `train/loss` is the loss of the task alone, so that it can be compared with `val/loss`.
        """
        if self.begins_step(batch_idx):
            self._targets.clear()
            self.experts.start_step()
        with self.experts.recording():
            loss = self.step(batch)
        weight = self.weight(batch)
        self._losses.append((loss.detach(), weight))
        if (of_experts := self.experts.loss()) is not None:
            loss = loss + of_experts
        # One micro-batch, or equal numbers of targets: the mean of the means is the mean over all targets.
        if weight is None or self._shares == 1:
            return loss
        self._targets.append(weight)
        # The loss is a mean; this makes it a sum over targets, which `_to_mean` divides by their total number.
        return loss * weight / UNIT

    @cached_property
    def experts(self) -> ExpertBalancing:
        """The mixtures of experts in the model; empty for other models."""
        return ExpertBalancing(self.model, self._total)

    def _total(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks."""
        total = self.trainer.strategy.reduce(tensor, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    @property
    def _shares(self) -> int:
        """Number of micro-batches of an optimizer step on all data-parallel ranks."""
        return self.trainer.accumulate_grad_batches * self.data_parallel

    def _to_mean(self, optimizer: Optimizer) -> None:
        """Rescale the gradients, which are averages over micro-batches, to those of the mean over targets."""
        targets = self._total(torch.stack(self._targets).sum())
        targets = targets * self.data_parallel / self.trainer.world_size  # ranks may share a batch
        # Lightning divides each loss by the number of accumulated micro-batches and averages over ranks, so a
        # gradient is that of Σ loss · targets / (UNIT · shares). This makes it that of Σ loss · targets / Σ targets.
        scale = self._shares * UNIT / targets.clamp(min=1)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    to_local(parameter.grad).mul_(scale)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the sums of a validation or a test."""
        self.evaluate(batch)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Record the metrics of the validation part, the same on all ranks.

        Raises:
            DivergedError: the loss is NaN or infinite; such a model is neither sampled from nor saved.
        """
        self._record_results("val")

    def on_test_epoch_end(self) -> None:
        """Record the metrics of the test part, or of the whole validation part."""
        self._record_results(self.tested)

    def _record_results(self, part: str) -> None:
        metrics = {f"{part}/{name}": value for name, value in self.results().items()}
        # Lightning's sanity check evaluates the initial weights, which may give any loss.
        if part == "val" and not self.trainer.sanity_checking:
            require_finite_loss("validation loss", metrics["val/loss"], step=self.global_step)
        self.record(metrics)
        # Lightning's callbacks read their monitored metric there.
        self.trainer.callback_metrics.update(
            {name: torch.tensor(value) for name, value in metrics.items()}
        )

    def configure_optimizers(self) -> Optimizer:
        """Return the optimizer, and keep the peak learning rate of each group."""
        optimizer = self.make_optimizer(self.parameter_groups(self.model))
        # Otherwise a fused optimizer unscales fp16 gradients inside its step, after clipping.
        if hasattr(optimizer, "_step_supports_amp_scaling"):
            optimizer._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]
        self._rates = [group["lr"] for group in optimizer.param_groups]
        return optimizer

    def on_train_start(self) -> None:
        """Set the peak learning rates of the configuration; those of a checkpoint may differ."""
        for group, rate in zip(self.trainer.optimizers[0].param_groups, self._rates, strict=True):
            group["initial_lr"] = rate

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Set the learning rates and take one optimizer step.

        The rate is a function of the step alone, so there is no scheduler whose state has to be saved.
        """
        step, max_steps = self.global_step, self.trainer.max_steps
        multiplier = self.schedule(min(step, max_steps - 1), max_steps)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
        optimizer.step(closure=optimizer_closure)
        if not self.is_adapted:  # the checkpoint of an adapter has no biases
            self.experts.update_biases()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients to a global norm and keep the norm before clipping (Pascanu et al. 2013).

        The norm is checked for NaN: at every step on the CPU, and at logged steps elsewhere, because reading it
        waits for the device.

        Raises:
            DivergedError: the norm is NaN or infinite.
        """
        if self._targets:
            self._to_mean(optimizer)
        is_checked = self.is_log_step or self.device.type == "cpu"
        if gradient_clip_val is not None or is_checked:
            limit = math.inf if gradient_clip_val is None else gradient_clip_val
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self.gradient_norm = clip_gradients(parameters, limit, others=self.peers)
            # An fp16 scaler skips a step with infinite gradients by itself.
            if is_checked and not getattr(self.trainer.precision_plugin, "scaler", None):
                norm = self.gradient_norm.item()
                require_finite_loss("norm of the gradients", norm, step=self.global_step)

    def begins_step(self, batch_idx: int) -> bool:
        """Whether micro-batch `batch_idx` is the first of its optimizer step."""
        return batch_idx % self.trainer.accumulate_grad_batches == 0

    def ends_step(self, batch_idx: int) -> bool:
        """Whether micro-batch `batch_idx` is the last of its optimizer step."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop after the last step, so that Lightning validates there too."""
        if self.global_step >= self.trainer.max_steps:
            self.trainer.should_stop = True

    @property
    def is_log_step(self) -> bool:
        """Whether the metrics of the current optimizer step are logged."""
        return (self.global_step + 1) % self.log_every == 0

    def take_training_metrics(self) -> dict[str, float]:
        """Return the mean training loss since the last call, gradient norm and learning rates; waits for the device."""
        metrics: dict[str, float] = {}
        if self._losses:
            metrics["train/loss"] = self._mean_loss()
            self._losses.clear()
        if self.gradient_norm is not None:
            metrics["train/gradient_norm"] = self.gradient_norm.item()
        optimizer = self.trainer.optimizers[0]
        rates = {group.get("name", "all"): group["lr"] for group in optimizer.param_groups}
        metrics["train/learning_rate"] = next(iter(rates.values()))
        if len(set(rates.values())) > 1:
            metrics |= {f"train/learning_rate_{name}": rate for name, rate in rates.items()}
        metrics |= {f"moe/{name}": value for name, value in self.experts.metrics().items()}
        return metrics | {f"train/{name}": value for name, value in self.training_metrics().items()}

    def _mean_loss(self) -> float:
        """Return the mean over the micro-batches of all ranks; ranks that share a batch count it equally."""
        losses = distributed.gather(self._plain_losses())
        # fsum is exact, so the sums do not depend on the order of the micro-batches.
        total = math.fsum(math.fsum(loss * weight for loss, weight in own) for own in losses)
        count = math.fsum(math.fsum(weight for _, weight in own) for own in losses)
        return total / max(count, 1)

    def _plain_losses(self) -> list[tuple[float, float]]:
        """Return the losses not yet logged and their weights as plain numbers; waits for the device."""
        if not self._losses:
            return []
        losses = torch.stack([loss.to(self.device) for loss, _ in self._losses])
        weights = [torch.ones_like(losses[0]) if w is None else w for _, w in self._losses]
        both = torch.stack([losses, torch.stack([each.to(losses) for each in weights])])
        return list(zip(*both.tolist(), strict=True))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the losses not yet logged, so that a resumed run logs the same as an uninterrupted one.

        For an adapted model only the trained parameters are stored. The checkpoint also names its run.
        """
        data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if (position := checkpoint.pop(type(data).__qualname__, None)) is not None:
            checkpoint["data"] = position  # one name for all classes
        checkpoint["run"] = Run(Path(self.trainer.default_root_dir)).stamp
        checkpoint["losses"] = distributed.gather(self._plain_losses())
        if self.is_adapted:
            state, trained = checkpoint["state_dict"], self.trained_names()
            checkpoint["state_dict"] = {name: state[name] for name in state if name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the losses not yet logged.

        Raises:
            ValueError: the checkpoint was written with another adapter.
        """
        if "data" in checkpoint:
            self.trainer.datamodule.load_state_dict(checkpoint["data"])  # pyright: ignore[reportAttributeAccessIssue]
        count_batches(checkpoint, self.trainer.accumulate_grad_batches)
        losses = distributed.state_of_this_rank(
            checkpoint["losses"], lambda lists: list(chain(*lists))
        )
        self._losses = [(torch.tensor(loss), torch.tensor(weight)) for loss, weight in losses or ()]
        if self.is_adapted:
            if checkpoint["state_dict"].keys() != self.trained_names():
                raise ValueError(
                    "the checkpoint belongs to another adapter: its parameters are not those trained here; resume with "
                    "the adapter that it was written with"
                )
            self.strict_loading = False

    def trained_names(self) -> set[str]:
        """Return the names of the parameters that are trained, on any rank."""
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def record(self, metrics: Mapping[str, float]) -> None:
        """Pass metrics of the current step to every logger, and keep the newest value of each."""
        self.metrics |= metrics
        self.metric_steps |= dict.fromkeys(metrics, self.global_step)
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(metrics), step=self.global_step)


def count_batches(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Set the number of micro-batches in a checkpoint to `accumulate` per optimizer step.

    Lightning divides the count to find the end of a step, and a resumed run may have another `accumulate`.

    Args:
        checkpoint: a checkpoint of a whole step.
        accumulate: number of micro-batches per optimizer step from now on.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    missing = checkpoint["global_step"] * accumulate - progress["total"]["processed"]
    for counts in (progress["total"], progress["current"]):
        for name in counts:
            counts[name] += missing
