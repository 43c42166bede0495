"""ZeRO through DeepSpeed: data parallelism in which each device keeps a share of what training needs."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from torch import nn

from llm.hardware import Hardware, MemoryDivisors, Strategy

if TYPE_CHECKING:
    from llm.parallel.deepspeed_strategy import DeepSpeedEngineStrategy


class ZeRO(Strategy):
    """DeepSpeed's engine (Rajbhandari et al. 2020), for comparison with `fsdp`, which is the same idea in torch.

    Stage 2 divides gradients and the optimizer's state over the devices; stage 3 the weights as well, and
    gathers a layer's while it computes. Each device reads batches of its own.

    The engine casts weights to bf16 or fp16 where `hardware.precision` asks for them, and keeps float32
    copies with the optimizer; the other strategies keep float32 weights and cast as they compute
    (autocast). So losses agree with theirs in precision 32, and within rounding otherwise.

    Args:
        stage: 2 or 3.
    """

    casts_weights = True

    def __init__(self, stage: Literal[2, 3] = 2) -> None:
        self.stage: Literal[2, 3] = stage
        self.is_sharded = stage == 3

    def lightning(self, hardware: Hardware) -> "DeepSpeedEngineStrategy":
        """Lightning's strategy around DeepSpeed's engine."""
        from llm.parallel.deepspeed_strategy import DeepSpeedEngineStrategy

        return DeepSpeedEngineStrategy(self.stage)

    def shares(self, world: int) -> MemoryDivisors:
        """Weights are whole in stage 2."""
        return MemoryDivisors(world if self.stage == 3 else 1, world, world, world, world)

    def require(self) -> None:
        """Refuse a machine without DeepSpeed.

        Raises:
            ValueError: it is not installed.
        """
        if find_spec("deepspeed") is None:
            raise ValueError(
                "strategy: ZeRO needs DeepSpeed, which is not installed: pip install 'llm-hydra[deepspeed]', or use "
                "hardware=fsdp, which divides the same without it"
            )

    def check(self, hardware: Hardware) -> None:
        """Refuse what DeepSpeed does not work with.

        Raises:
            ValueError: the accelerator is MPS.
        """
        super().check(hardware)
        if hardware.accelerator == "mps":
            raise ValueError("strategy: DeepSpeed does not support MPS; use hardware=cpu")

    def fits(self, task: nn.Module, world: int) -> None:
        """Refuse a task whose batches weigh by their targets.

        Raises:
            ValueError: it is one.
        """
        from llm.parallel.deepspeed_strategy import require_even_weights

        require_even_weights(task)
