"""Lightning's trainer, as a run uses it."""

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
from llm.checkpoints.checkpoint_file import load_checkpoint, remove_checkpoint, save_checkpoint
from llm.training.prepared_run import PreparedRun

# Lightning's advertisements and repetitions, and its use of a function that torch deprecates.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")


def make_trainer(
    prepared: PreparedRun,
    *,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    directory: Path,
    before: bool = False,
    opened: dict[str, Any] | None = None,
) -> L.Trainer:
    """Make Lightning's trainer, lean: no extra bars or summaries, and one endless epoch.

    Data order is a function of (seed, batch number), so an epoch is a word for the budget only: one
    endless epoch resumes from any step.

    Args:
        prepared: what to train.
        callbacks: in their order.
        loggers: where metrics go.
        directory: of the run.
        before: whether the weights are validated before the first step: by Lightning's sanity check over the whole
            validation part, which leaves random states as it found them.
        opened: the checkpoint that training resumes from, if this process has read it already.
    """
    settings, hardware = prepared.config.trainer, prepared.hardware
    task, steps = prepared.task, prepared.steps
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
        plugins=[VerifiedCheckpointIO(opened), environment()],
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
    """Lightning's checkpoints as `llm.checkpoints.checkpoint_file` writes and verifies them.

    Args:
        opened: a checkpoint that was read before, which the first load returns.
    """

    def __init__(self, opened: dict[str, Any] | None = None) -> None:
        self.opened = opened

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write whole or not at all; the options are those of `llm.checkpoints.checkpoint_file`."""
        save_checkpoint(checkpoint, Path(path), **(storage_options or {}))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,
        weights_only: bool | None = None,  # noqa: FBT001 - Lightning's own signature
    ) -> dict[str, Any]:
        """Read tensors and plain data, never code, whatever `weights_only` says."""
        opened, self.opened = self.opened, None
        if opened is not None and map_location in (None, "cpu"):
            return opened
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
