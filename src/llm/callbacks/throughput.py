"""The callback that measures speed and memory."""

import sys
import time
from typing import Any, Protocol, runtime_checkable

import lightning as L
import psutil
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from llm import distributed
from llm.callbacks.base import StepCallback
from llm.callbacks.crowding import Crowding
from llm.precision import peak_flops
from llm.tasks.base import Task

if sys.platform != "win32":
    import resource


@runtime_checkable
class SupportsFlops(Protocol):
    """A model with a known training cost."""

    def flops_per_token(self, context: int) -> int:
        """Return the training FLOPs per token, forward and backward, at this context length."""
        ...


class Throughput(StepCallback):
    """The metrics `speed/tokens_per_second`, `speed/mfu` and `memory/peak_gib` at every logged step.

    Counts all training tokens, including padding. The time of validation and sampling is not included.

    MFU (model FLOPs utilisation) is the share of the hardware's peak FLOPs per second, published for a GPU and measured
    on a CPU, that one forward and backward pass over these tokens uses (Chowdhery et al. 2022, appendix B: 6 FLOPs per
    parameter and token, plus attention). A reference model and the sampling of responses are not counted. MFU is left
    out if parameters are frozen: they need fewer than 6 FLOPs, depending on their position.

    Warns once if other programs use the cores of a run on the CPU (`Crowding`).
    """

    state_key = "throughput"  # pyright: ignore

    def __init__(self) -> None:
        self.peak_flops: float | None = None
        self.total_tokens = 0
        self._tokens = 0  # since the last report
        self._seconds = 0.0  # since the last report
        self._uncounted = 0  # tokens of this rank's batches
        self._context = 0  # tokens of a row
        self._sharing = 1  # ranks that work on one batch
        self._since: float | None = None
        self._crowding = Crowding()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Determine the hardware's peak FLOPs per second, if the whole model is trained."""
        assert isinstance(pl_module, Task)
        self._sharing = trainer.world_size // pl_module.data_parallel
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        if all(parameter.requires_grad for parameter in pl_module.model.parameters()):
            self.peak_flops = peak_flops(pl_module.device, dtype, devices=trainer.world_size)
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        if self._since is not None:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            elapsed = time.perf_counter() - self._since
            self._crowding.stop(elapsed)
            self._seconds += elapsed
            self._since = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch's tokens; start the clock if it is stopped."""
        self._uncounted += batch["tokens"].numel()
        self._context = batch["tokens"].shape[1]
        if self._since is None:
            self._since = time.perf_counter()
            if pl_module.device.type == "cpu":
                self._crowding.start()

    def after_step(self, trainer: L.Trainer, task: Task) -> None:
        """Record these metrics and the task's training metrics at logged steps."""
        if trainer.global_step % task.log_every == 0:
            self.on_validation_start(trainer, task)
            task.record(task.take_training_metrics() | self._report(task))
            if line := self._crowding.warning():
                rank_zero_warn(line)

    def _count(self) -> None:
        """Add the tokens of all ranks, counting a batch once if several ranks share it."""
        read = sum(distributed.gather(self._uncounted)) // self._sharing
        self._uncounted = 0
        self._tokens += read
        self.total_tokens += read

    def _report(self, task: Task) -> dict[str, float]:
        self._count()
        speed = self._tokens / max(self._seconds, 1e-9)
        self._tokens, self._seconds = 0, 0.0
        metrics = {
            "speed/tokens_per_second": speed,
            "memory/peak_gib": peak_memory(task.device) / 2**30,
            "tokens": float(self.total_tokens),
        }
        if self.peak_flops is not None and isinstance(task.model, SupportsFlops):
            flops = task.model.flops_per_token(self._context)
            metrics["speed/mfu"] = speed * flops / self.peak_flops
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the number of tokens so far."""
        self._count()
        return {"total_tokens": self.total_tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of tokens."""
        self.total_tokens = state_dict["total_tokens"]


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes, of tensors on the GPU or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
