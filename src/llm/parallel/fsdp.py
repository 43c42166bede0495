"""Fully sharded data parallelism: each device has a shard of the weights and gathers the rest as needed."""

from typing import cast

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from llm.hardware import Hardware, MemoryDivisors, Strategy
from llm.parallel.mesh_strategy import MeshStrategy


class FSDP(Strategy):
    """Shard weights, gradients and optimizer state; gather the weights of one block at a time.

    This is stage 3 of ZeRO (Rajbhandari et al. 2020; Zhao et al. 2023), by torch's `fully_shard`: for each
    block one all-gather in the forward pass, one all-gather and one reduce-scatter in the backward pass.
    Each device reads its own batches.

    Mixed precision uses autocast, as on a single device, and weights are sent in float32, so losses do not
    depend on the number of devices. The mixed precision of `fully_shard` would send them in bfloat16,
    which halves the traffic, but also rounds norms and the residual stream.

    Args:
        sharded_checkpoint: write a checkpoint as a folder with the shards of each device; false gathers
            everything on the first device, which writes one file.
    """

    is_sharded = True
    takes_fp16 = False  # each device would look for overflows, and skip steps, on its own

    def __init__(self, *, sharded_checkpoint: bool = False) -> None:
        self.sharded_checkpoint = sharded_checkpoint

    def lightning(self, hardware: Hardware) -> MeshStrategy:
        """Return a strategy for a device mesh of data-parallel ranks."""
        return MeshStrategy(hardware.world, 1, sharded_checkpoint=self.sharded_checkpoint)

    def shard(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """Shard a model block by block."""
        fully_shard_blocks(model, mesh["data_parallel"])

    def shares(self, world: int) -> MemoryDivisors:
        """Divide everything, and do not count the gathered weights of one block."""
        return MemoryDivisors(world, world, world, world, world)


def fully_shard_blocks(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard each block of a model in place, then its other modules. Tied parameters stay tied.

    Args:
        model: the model.
        mesh: a mesh of one dimension.
    """
    for block in cast(nn.ModuleList, getattr(model, "blocks", ())):
        fully_shard(block, mesh=mesh)
    # Embedding, head and final norm are one group, because embedding and head may be one parameter.
    fully_shard(model, mesh=mesh)
    # Generation calls `hidden_states`, then the head: the first call gathers the outer group for both.
    if hasattr(model, "hidden_states"):
        register_fsdp_forward_method(model, "hidden_states")
