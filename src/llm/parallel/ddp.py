"""Data parallelism: each device has the whole model and trains on its share of each batch."""

from inspect import signature
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from llm.hardware import Hardware, MemoryDivisors, Strategy


class DDP(Strategy):
    """Average the gradients over all devices while the backward pass is still running (Li et al. 2020).

    Args:
        find_unused_parameters: search the graph of every step for trained parameters that the loss does not
            depend on, because DDP waits for every gradient. The models of this package use all their parameters;
            set it for a model of your own that does not.
    """

    keeps_gradients = True  # in the communication buffers

    def __init__(self, *, find_unused_parameters: bool = False) -> None:
        self.find_unused_parameters = find_unused_parameters

    def lightning(self, hardware: Hardware) -> DDPStrategy:
        """Return Lightning's strategy for `torch.nn.parallel.DistributedDataParallel`."""
        # The models' buffers are equal on all ranks, so DDP need not send them. torch 2.13 renames `broadcast_buffers`.
        is_renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if is_renamed else "broadcast_buffers"
        synchronize: dict[str, Any] = {name: False}
        return DDPStrategy(
            find_unused_parameters=self.find_unused_parameters,
            gradient_as_bucket_view=True,  # store gradients in the communication buffers only
            **synchronize,
        )

    def shares(self, world: int) -> MemoryDivisors:
        """Divide only what grows with the batch."""
        return MemoryDivisors(activations=world, logits=world)
