"""Data parallelism: every device has the whole model, and learns from its share of each batch."""

from inspect import signature
from typing import TYPE_CHECKING, Any

from llm.hardware import Hardware, MemoryDivisors, Strategy

if TYPE_CHECKING:
    from lightning.pytorch.strategies import DDPStrategy


class DDP(Strategy):
    """Average the gradients of all devices while the backward pass still computes (Li et al. 2020).

    Args:
        find_unused_parameters: look in every step for trained parameters that had no part in its loss
            and would be waited for in vain. Here every model uses all that it trains in each step, and
            looking costs a walk through the graph; turn it on for a model of yours that does not.
    """

    keeps_gradients = True  # in the buffers that are sent

    def __init__(self, *, find_unused_parameters: bool = False) -> None:
        self.find_unused_parameters = find_unused_parameters

    def lightning(self, hardware: Hardware) -> "DDPStrategy":
        """Lightning's strategy around `torch.nn.parallel.DistributedDataParallel`."""
        from lightning.pytorch.strategies import DDPStrategy
        from torch.nn.parallel import DistributedDataParallel

        known = signature(DistributedDataParallel).parameters
        # Our buffers are constants. The word is another since torch 2.13.
        word = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        sync: dict[str, Any] = {word: False}
        return DDPStrategy(
            find_unused_parameters=self.find_unused_parameters,
            gradient_as_bucket_view=True,  # a gradient lies in the buffer that is sent, once
            **sync,
        )

    def shares(self, world: int) -> MemoryDivisors:
        """Only what grows with the batch is divided."""
        return MemoryDivisors(activations=world, logits=world)
