"""Lightning's trainer, configured for a run."""

import logging
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler

from llm import distributed
from llm.checkpoints.checkpoint_file import load_checkpoint, save_checkpoint
from llm.checkpoints.checksums import remove_checkpoint
from llm.training.prepared_run import PreparedRun

# Lightning logs advertisements, and calls a function that torch deprecates.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")


# Hooks that Lightning calls in every step. Three changes together remove 40 % of the time that the trainer adds to a
# step (`experiments/trainer_overhead`): empty hooks and profiling are skipped, and `Task.__setattr__` bypasses
# `nn.Module` for the name of the current hook.
STEP_HOOKS = (
    *("on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward"),
    *("on_before_zero_grad", "on_before_optimizer_step"),
)


class NoProfiler(PassThroughProfiler):
    """A profiler that does nothing. Lightning's default makes a context manager seventy times per step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> nullcontext:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a context that does nothing."""
        return self._nothing


def skip_empty_hooks(owner: Callback | L.LightningModule) -> None:
    """Set the empty step hooks that `owner` inherits to None: Lightning skips what is not callable."""
    base = Callback if isinstance(owner, Callback) else L.LightningModule
    for name in STEP_HOOKS:
        if getattr(type(owner), name) is getattr(base, name):
            setattr(owner, name, None)


def make_trainer(
    prepared: PreparedRun,
    *,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    directory: Path,
    validates_first: bool = False,
    opened: dict[str, Any] | None = None,
) -> L.Trainer:
    """Make Lightning's trainer, with one endless epoch.

    Epochs only define the budget: the seed and the batch number determine each batch, so a run can resume from any
    step.

    Args:
        prepared: the run to train.
        callbacks: the callbacks, in order.
        loggers: the loggers.
        directory: folder of the run.
        validates_first: validate before the first step, as Lightning's sanity check, which restores the random states.
        opened: the checkpoint to resume from, if this process has read it already.
    """
    task, hardware, settings = prepared.task, prepared.hardware, prepared.config.trainer
    if hardware.strategy is not None:
        task.shard = hardware.strategy.shard
    # Set explicitly, because Lightning would guess it from variables of a cluster's scheduler.
    environment = TorchElasticEnvironment if distributed.is_rank() else LightningEnvironment
    for owner in (task, *callbacks):
        skip_empty_hooks(owner)
    trainer = L.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=hardware.strategy.lightning(hardware) if hardware.strategy else "auto",
        precision=hardware.lightning_precision,  # pyright: ignore[reportArgumentType]
        max_steps=prepared.steps,
        max_epochs=-1,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip,
        num_sanity_val_steps=-1 if validates_first else 0,
        val_check_interval=settings.validation_interval(prepared.steps) * settings.accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=settings.val_batches,
        log_every_n_steps=settings.log_every,
        default_root_dir=directory,
        callbacks=list(callbacks),
        logger=list(loggers),
        plugins=[VerifiedCheckpointIO(opened), environment()],
        profiler=NoProfiler(),
        inference_mode=not task.is_sharded,  # DTensors do not support it
        use_distributed_sampler=False,
        enable_checkpointing=False,  # `llm.callbacks.checkpoints` saves them
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    disable_signal_handling(trainer)
    return trainer


class VerifiedCheckpointIO(CheckpointIO):
    """Checkpoint IO for Lightning by `llm.checkpoints.checkpoint_file`.

    Args:
        opened: a checkpoint that is already read; the first load returns it.
    """

    def __init__(self, opened: dict[str, Any] | None = None) -> None:
        self.opened = opened

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write atomically; `storage_options` are those of `llm.checkpoints.checkpoint_file`."""
        save_checkpoint(checkpoint, Path(path), **(storage_options or {}))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,
        weights_only: bool | None = None,  # noqa: FBT001 - Lightning's own signature
    ) -> dict[str, Any]:
        """Read tensors and plain data, never code, for any value of `weights_only`."""
        opened, self.opened = self.opened, None
        if opened is not None and map_location in (None, "cpu"):
            return opened
        return load_checkpoint(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        remove_checkpoint(Path(path))


def disable_signal_handling(trainer: L.Trainer) -> None:
    """Disable Lightning's signal handling; `llm.callbacks.interrupt` handles signals.

    Lightning's SIGTERM handler communicates with other ranks at any moment, and its loop synchronizes all devices at
    each micro-batch.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
