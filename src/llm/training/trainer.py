"""How long and how a run trains: the budget, what is derived from it, and Lightning's trainer."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from torch import nn
from torch.utils.checkpoint import checkpoint

from llm import distributed
from llm.checkpoints.checkpoint_file import load_checkpoint, remove_checkpoint, save_checkpoint
from llm.hardware import Hardware
from llm.tasks.base import Task

# Validating a token costs a third of training on it, and a token is a byte or, of byte pairs, three or four.
VALIDATED_BYTES = 1.5  # for each token trained on
LEAST_VALIDATED = 1 << 15  # bytes: less tells too little


@dataclass(frozen=True)
class TrainerSettings:
    """The budget of a run and its rhythm. Exactly one of the three `max_` words sets the budget.

    Args:
        max_steps: optimizer steps.
        max_epochs: passes over the training part, rounded up to whole steps.
        max_tokens: training tokens, rounded up to whole steps.
        accumulate: micro-batches an optimizer step gathers.
        gradient_clip: the global norm gradients are clipped to; null does not clip.
        val_every: steps between validations; null takes a tenth of the run.
        val_batches: at most this many validation batches; null leaves it to `val_bytes`.
        val_bytes: bytes of text that a validation during training reads at most, spread over the part; null takes
            half as many again as tokens are trained on between two validations, so that validating takes at most
            half as long as training, and an eighth of it with byte-pair tokens. Smaller parts are read whole.
        log_every: steps between logged training metrics.
    """

    max_steps: int | None = None
    max_epochs: float | None = None
    max_tokens: float | None = None
    accumulate: int = 1
    gradient_clip: float | None = 1.0
    val_every: int | None = None
    val_batches: int | None = None
    val_bytes: float | None = None
    log_every: int = 10

    def __post_init__(self) -> None:
        budgets = {key: getattr(self, key) for key in ("max_steps", "max_epochs", "max_tokens")}
        given = [key for key, value in budgets.items() if value is not None]
        if len(given) != 1:
            told = " and ".join(given) or f"none of {', '.join(budgets)}"
            example = "" if given else ", as in trainer.max_steps=1000"
            raise ValueError(
                f"{told} given: set exactly one of them and the others to null{example}"
            )
        for key in (
            *given,
            "accumulate",
            "val_every",
            "val_batches",
            "val_bytes",
            "log_every",
            "gradient_clip",
        ):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ValueError(f"{key}={value}: give a number above 0")
        if budgets[given[0]] == math.inf:
            raise ValueError(f"{given[0]}=inf: give a number above 0 that is finite")

    def steps(self, batches_per_epoch: float, tokens_per_batch: float) -> int:
        """The budget in optimizer steps.

        Args:
            batches_per_epoch: micro-batches in one pass over the training part; need not be whole.
            tokens_per_batch: tokens in a micro-batch, shared by all devices; on average where it varies.
        """
        if self.max_steps is not None:
            return self.max_steps
        if self.max_epochs is not None:
            return max(1, math.ceil(self.max_epochs * batches_per_epoch / self.accumulate - 1e-9))
        assert self.max_tokens is not None
        return max(1, math.ceil(self.max_tokens / (tokens_per_batch * self.accumulate)))

    def validation_interval(self, steps: int) -> int:
        """Optimizer steps between validations in a run of `steps`."""
        return min(self.val_every or math.ceil(steps / 10), steps)

    def validation_bytes(self, steps: int, tokens_per_batch: float) -> float:
        """Bytes of text that a validation during training reads at most.

        Args:
            steps: of the run.
            tokens_per_batch: as for `steps`.
        """
        if self.val_batches is not None:
            return math.inf
        if self.val_bytes is not None:
            return self.val_bytes
        trained = self.validation_interval(steps) * self.accumulate * tokens_per_batch
        return max(LEAST_VALIDATED, VALIDATED_BYTES * trained)


def make_trainer(
    settings: TrainerSettings,
    hardware: Hardware,
    steps: int,
    task: Task,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    directory: Path,
    *,
    before: bool = False,
) -> L.Trainer:
    """Lightning's trainer, lean: no extra bars or summaries, and an endless epoch.

    Data order is a function of (seed, batch number), so an epoch is a word for the budget only: one
    endless epoch resumes from any step.

    With `before` the weights are validated as they are before the first step: Lightning's sanity check over the
    whole validation part, which leaves random states as it found them.
    """
    for owner in (task, *callbacks):
        skip_empty_hooks(owner)
    if hardware.strategy is not None:
        task.shard = hardware.strategy.shard
    # Said, for Lightning would guess it from what a cluster's scheduler left in the environment.
    environment = TorchElasticEnvironment if distributed.is_rank() else LightningEnvironment
    trainer = L.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy="auto" if hardware.strategy is None else hardware.strategy.lightning(hardware),
        precision=hardware.lightning_precision,  # pyright: ignore[reportArgumentType]
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip,
        val_check_interval=settings.validation_interval(steps) * settings.accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=settings.val_batches,
        log_every_n_steps=settings.log_every,
        num_sanity_val_steps=-1 if before else 0,
        default_root_dir=directory,
        callbacks=list(callbacks),
        logger=list(loggers),
        plugins=[VerifiedCheckpointIO(), environment()],
        profiler=NoProfiler(),
        use_distributed_sampler=False,
        inference_mode=not task.is_sharded,  # which is closed to tensors that devices share
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    leave_signals_alone(trainer)
    return trainer


# What Lightning calls in every step.
STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's checkpoints as `llm.checkpoints.checkpoint_file` writes and verifies them."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write whole or not at all; the options are those of `llm.checkpoints.checkpoint_file`."""
        save_checkpoint(checkpoint, Path(path), **(storage_options or {}))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain data, never code, whatever `weights_only` says."""
        return load_checkpoint(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete."""
        remove_checkpoint(Path(path))


class NoProfiler(PassThroughProfiler):
    """Measures nothing and, unlike Lightning's that measures nothing, costs next to nothing either."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> nullcontext:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A context that does nothing, some thirty times a step."""
        return self._nothing


def leave_signals_alone(trainer: L.Trainer) -> None:
    """Leave signals to `llm.callbacks.interrupt`.

    Lightning's own handler of SIGTERM talks to the other ranks in the middle of whatever they are doing,
    and its loop lets all devices wait for one another at each micro-batch to ask whether one came.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def skip_empty_hooks(owner: Callback | L.LightningModule) -> None:
    """Let Lightning pass over the step hooks that `owner` inherits and that do nothing.

    It books each call, of each callback, with some four microseconds: with nine callbacks and six hooks
    a fifth of a millisecond a step. A hook that is not callable it skips.
    """
    base = Callback if isinstance(owner, Callback) else L.LightningModule
    for name in STEP_HOOKS:
        if getattr(type(owner), name) is getattr(base, name):
            setattr(owner, name, None)


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute each block in the backward pass instead of keeping its activations (Chen et al. 2016)."""
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        raise ValueError(
            f"activation checkpointing needs blocks, and {type(model).__name__} has none"
        )
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
