"""Tensor parallelism: several devices compute each layer together."""

import warnings

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from llm.hardware import Hardware, MemoryDivisors, Strategy
from llm.parallel.fsdp import fully_shard_blocks
from llm.parallel.lora_tensor_parallel import complete_plan_of
from llm.parallel.mesh_strategy import MeshStrategy
from llm.parallel.tensor_parallel_plan import parallelize


class TensorParallel(Strategy):
    """Divide each layer among the devices of a group, and the data among the groups.

    A group computes one batch: each device has some attention heads and a slice of the feed-forward layer
    (`llm.parallel.tensor_parallel_plan`). Several groups also shard each weight among them, as in FSDP. The
    devices of a group communicate twice in each layer, so they should be in one machine.

    Args:
        size: number of devices in a group; it must divide the number of devices and the numbers of heads. Null
            makes one group of all devices.
    """

    is_sharded = True
    takes_fp16 = False  # as for FSDP

    def __init__(self, size: int | None = None) -> None:
        if size is not None and size < 1:
            raise ValueError(f"size={size}: give 1 or more devices, or null for all of them")
        self.size = size

    def lightning(self, hardware: Hardware) -> MeshStrategy:
        """Return a strategy for a mesh of groups × devices of a group."""
        groups = self.data_parallel(hardware.world)
        return MeshStrategy(groups, hardware.world // groups)

    def shard(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """Divide a model among the devices of a group, then shard it over the groups."""
        group, groups = mesh["tensor_parallel"], mesh["data_parallel"]
        if group.size() > 1:
            parallelize(model, group, plan=complete_plan_of(model, group.size()))
        if groups.size() > 1:
            # The gathered logits are a view, which nothing here modifies.
            warnings.filterwarnings(
                "ignore", message="FSDP2-wrapped module .* returned a view tensor"
            )
            fully_shard_blocks(model, groups)

    def data_parallel(self, world: int) -> int:
        """Return the number of groups."""
        return world // (self.size or world)

    def shares(self, world: int) -> MemoryDivisors:
        """Divide weights among all devices, activations among the groups only."""
        groups = self.data_parallel(world)
        return MemoryDivisors(world, world, world, activations=groups, logits=groups)

    def check(self, hardware: Hardware) -> None:
        """Raise a ValueError if `size` does not divide the devices, or precision is fp16."""
        super().check(hardware)
        if hardware.world % (self.size or 1):
            raise ValueError(
                f"strategy.size={self.size} does not divide {hardware.world} devices: choose a divisor of them"
            )

    def fits(self, task: nn.Module, world: int) -> None:
        """Raise a ValueError if a part of the model has no plan, or cannot be divided evenly."""
        size = self.size or world
        if size > 1:
            complete_plan_of(task.get_submodule("model"), size)
