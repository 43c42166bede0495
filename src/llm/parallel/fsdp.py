"""Fully sharded data parallelism: every device has a share of the weights, and borrows the rest."""

from typing import TYPE_CHECKING, cast

from torch import nn

from llm.hardware import Hardware, MemoryDivisors, Strategy

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from llm.parallel.mesh_strategy import MeshStrategy


class FSDP(Strategy):
    """Divide weights, gradients and the optimizer's state; gather a block's weights while it computes.

    ZeRO's third stage (Rajbhandari et al. 2020; Zhao et al. 2023), as torch's `fully_shard` does it: one
    gather a block forward, one gather and one reduce-scatter backward. Each device reads batches of its own.

    Mixed precision is autocast's, as on one device, so that a run gives the same losses on any number of
    them: weights travel and norms compute in float32. `fully_shard`'s own policy would send weights as
    bfloat16, half the traffic, and round norms and the residual stream with them.

    Args:
        sharded_checkpoint: each device writes its share of a checkpoint, a folder of safetensors; false
            gathers everything on the first device, which writes one file.
    """

    is_sharded = True
    takes_fp16 = (
        False  # each device would find overflows in its own share alone, and skip steps alone
    )

    def __init__(self, *, sharded_checkpoint: bool = False) -> None:
        self.sharded_checkpoint = sharded_checkpoint

    def lightning(self, hardware: Hardware) -> "MeshStrategy":
        """Lightning's strategy of a device mesh, all of whose devices read batches of their own."""
        from llm.parallel.mesh_strategy import MeshStrategy

        return MeshStrategy(hardware.world, 1, in_parts=self.sharded_checkpoint)

    def shard(self, model: nn.Module, mesh: "DeviceMesh") -> None:
        """Divide a model, block by block."""
        fully_shard_blocks(model, mesh["data_parallel"])

    def shares(self, world: int) -> MemoryDivisors:
        """All but what a block borrows."""
        return MemoryDivisors(world, world, world, world, world)


def fully_shard_blocks(model: nn.Module, mesh: "DeviceMesh") -> None:
    """Shard each block of a model, then its other modules, over the devices of a mesh.

    Args:
        model: the model, which is changed in place; a tied parameter stays one.
        mesh: a mesh of one dimension.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # Embedding, head and final norm are one group: the first two may be one parameter.
    for block in cast(nn.ModuleList, getattr(model, "blocks", ())):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # Who writes text calls the body, then the head: the body's call gathers the outer group for both.
    if hasattr(model, "hidden"):
        register_fsdp_forward_method(model, "hidden")
