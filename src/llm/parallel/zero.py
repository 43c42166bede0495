"""ZeRO by DeepSpeed: data parallelism in which each device stores a shard of the training state."""

from importlib.util import find_spec
from typing import Literal

from torch import nn

from llm.hardware import Hardware, MemoryDivisors, Strategy
from llm.parallel.deepspeed_strategy import DeepSpeedEngineStrategy
from llm.tasks.base import Task


class ZeRO(Strategy):
    """DeepSpeed's engine (Rajbhandari et al. 2020), for comparison with `fsdp`, which is the same idea in torch.

    Stage 2 divides gradients and optimizer state among the devices. Stage 3 divides the weights as well and gathers
    those of a layer while it computes. Each device reads its own batches.

    With `hardware.precision` bf16 or fp16 the engine stores the weights in that precision, and float32 copies with the
    optimizer. The other strategies store float32 weights and use autocast, so losses differ by rounding.

    Args:
        stage: 2 or 3.
    """

    casts_weights = True

    def __init__(self, stage: Literal[2, 3] = 2) -> None:
        self.stage: Literal[2, 3] = stage
        self.is_sharded = stage == 3

    def lightning(self, hardware: Hardware) -> DeepSpeedEngineStrategy:
        """Return Lightning's strategy for DeepSpeed's engine."""
        return DeepSpeedEngineStrategy(self.stage)

    def shares(self, world: int) -> MemoryDivisors:
        """Divide everything, except the weights in stage 2."""
        return MemoryDivisors(world if self.stage == 3 else 1, world, world, world, world)

    def require(self) -> None:
        """Raise a ValueError if DeepSpeed is not installed."""
        if find_spec("deepspeed") is None:
            raise ValueError(
                "strategy: ZeRO needs DeepSpeed, which is not installed: pip install 'llm-hydra[deepspeed]', or use "
                "hardware=fsdp, which also shards the training state and does not need it"
            )

    def check(self, hardware: Hardware) -> None:
        """Raise a ValueError for MPS, which DeepSpeed does not support."""
        super().check(hardware)
        if hardware.accelerator == "mps":
            raise ValueError("strategy: DeepSpeed does not support MPS; use hardware=cpu")

    def fits(self, task: nn.Module, world: int) -> None:
        """Raise a ValueError if the task weights batches by their targets: the engine's mean is unweighted."""
        assert isinstance(task, Task)
        if type(task).weight is not Task.weight:
            raise ValueError(
                f"ZeRO averages the devices' losses, which {type(task).__name__} weights by its targets: use "
                "hardware=fsdp"
            )
