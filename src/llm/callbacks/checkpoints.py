"""The best and the last checkpoint, written whole or not at all, and checked when read."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Callback

from llm.callbacks.gradients import require_finite
from llm.runs import Run


class DamagedCheckpointError(RuntimeError):
    """A checkpoint's bytes are not those that were written."""


class Checkpoints(Callback):
    """Keep `last.ckpt` (everything exact resume needs) and `best.ckpt` (weights of the lowest `val/loss`).

    Both are written after each validation, so that no resumed run owes one. Weights that are not
    finite are never written.

    Args:
        every: write `last.ckpt` at every so many steps as well; null leaves it to the validations.
    """

    def __init__(self, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every={every}: give a number of steps from 1 on, or null")
        self.every = every
        self.best = math.inf
        self.best_step = 0
        self._saved_step = -1

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write `last.ckpt` where `every` says so and no validation is about to."""
        if self.every is None or trainer.global_step % self.every or validates_now(trainer):
            return
        self.save_last(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write `best.ckpt` where this validation was the best, then `last.ckpt`."""
        loss = trainer.callback_metrics["val/loss"].item()
        if loss < self.best:
            require_finite(pl_module, trainer.global_step)
            self.best, self.best_step = loss, trainer.global_step
            trainer.save_checkpoint(_run(trainer).best, weights_only=True)
        self.save_last(trainer, pl_module)

    def save_last(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write `last.ckpt`, unless this step's is there or the weights are not finite (DivergedError)."""
        if self._saved_step == trainer.global_step:
            return
        require_finite(pl_module, trainer.global_step)
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(_run(trainer).last)

    def state_dict(self) -> dict[str, Any]:
        """The best validation so far, so that a resumed run does not overwrite it with a worse one."""
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved best."""
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]


def _run(trainer: L.Trainer) -> Run:
    return Run(Path(trainer.default_root_dir))


def validates_now(trainer: L.Trainer) -> bool:
    """Whether a validation follows the training batch that just ended."""
    interval = trainer.val_check_interval
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return ready % interval == 0 or trainer.global_step >= trainer.max_steps


class VerifiedCheckpointIO(CheckpointIO):
    """Writes a checkpoint atomically and records its SHA-256; verifies it and unpickles no code on reading.

    Neither `torch.load` nor safetensors notices a flipped byte. The record beside the checkpoints names
    the old and the new digest while one file replaces the other, so that no moment of a crash makes a
    whole file look damaged.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write under another name in the same folder, then rename."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            digest = _sha256(partial)
            _write_digests(path, [*_read_digests(path), digest])
            partial.replace(path)
            _write_digests(path, [digest])
        finally:
            partial.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain data; raises DamagedCheckpointError, FileNotFoundError."""
        return load_checkpoint(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint and its record."""
        Path(path).unlink(missing_ok=True)
        _write_digests(Path(path), [])


def load_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of tensors and plain data after checking its recorded SHA-256.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedCheckpointError: the file is not what was written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    digests = _read_digests(path)
    if digests and _sha256(path) not in digests:
        raise DamagedCheckpointError(
            f"{path} is damaged: its SHA-256 is not the one in {_manifest(path).name}; "
            "use the other checkpoint of the run, or train it again with rerun=true"
        )
    return torch.load(path, map_location=map_location, weights_only=True)


def _manifest(path: Path) -> Path:
    return path.with_name("sha256.json")


def _read_digests(path: Path) -> list[str]:
    manifest = _manifest(path)
    return json.loads(manifest.read_text("utf-8")).get(path.name, []) if manifest.is_file() else []


def _write_digests(path: Path, digests: list[str]) -> None:
    manifest = _manifest(path)
    entries = json.loads(manifest.read_text("utf-8")) if manifest.is_file() else {}
    entries[path.name] = digests
    partial = manifest.with_name(f".{manifest.name}.{os.getpid()}")
    partial.write_text(json.dumps(entries, indent=1) + "\n", "utf-8")
    partial.replace(manifest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
