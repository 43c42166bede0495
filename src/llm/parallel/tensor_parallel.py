"""Tensor parallelism: several devices compute each layer together."""

import warnings
from typing import TYPE_CHECKING

from torch import nn

from llm.hardware import Hardware, MemoryDivisors, Strategy
from llm.parallel.fsdp import fully_shard_blocks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from llm.parallel.mesh_strategy import MeshStrategy


class TensorParallel(Strategy):
    """Divide the work of each layer over a group of devices, and the data over the groups.

    A group works on one batch: each device has some heads of attention and a slice of the feed-forward
    layer (`llm.parallel.tensor_parallel_plan`). Where there is more than one group, each weight is divided further over
    the groups, as FSDP does. Devices of a group talk twice a layer, so they should share a machine.

    Args:
        size: devices of a group; a divisor of all devices and of the numbers of heads. Null makes one
            group of all.
    """

    is_sharded = True
    takes_fp16 = False  # as with FSDP

    def __init__(self, size: int | None = None) -> None:
        if size is not None and size < 1:
            raise ValueError(f"size={size}: give 1 or more devices, or null for all of them")
        self.size = size

    def lightning(self, hardware: Hardware) -> "MeshStrategy":
        """Lightning's strategy of a device mesh: groups by devices of a group."""
        from llm.parallel.mesh_strategy import MeshStrategy

        groups = self.data_parallel(hardware.world)
        return MeshStrategy(groups, hardware.world // groups)

    def shard(self, model: nn.Module, mesh: "DeviceMesh") -> None:
        """Divide a model over the devices of a group, then over the groups."""
        from llm.parallel.lora_tensor_parallel import lora_plan_of
        from llm.parallel.tensor_parallel_plan import parallelize

        group, groups = mesh["tensor_parallel"], mesh["data_parallel"]
        if group.size() > 1:
            parallelize(model, group, plan=lora_plan_of(model, group.size()))
        if groups.size() > 1:
            # The logits that a group joined are a view; nothing here writes into them.
            warnings.filterwarnings(
                "ignore", message="FSDP2-wrapped module .* returned a view tensor"
            )
            fully_shard_blocks(model, groups)

    def data_parallel(self, world: int) -> int:
        """The number of groups."""
        return world // (self.size or world)

    def shares(self, world: int) -> MemoryDivisors:
        """Weights by all devices; of activations those within a layer by a group's devices, and the batch."""
        groups = self.data_parallel(world)
        return MemoryDivisors(world, world, world, activations=groups, logits=groups)

    def check(self, hardware: Hardware) -> None:
        """Refuse groups that do not divide the devices, and float16.

        Raises:
            ValueError: they do not.
        """
        super().check(hardware)
        if hardware.world % (self.size or 1):
            raise ValueError(
                f"strategy.size={self.size} does not divide {hardware.world} devices: choose a divisor of them"
            )

    def fits(self, task: nn.Module, world: int) -> None:
        """Refuse a model with parts that a group of devices cannot share, or that nobody knows how to divide.

        Raises:
            ValueError: it has.
        """
        from llm.parallel.lora_tensor_parallel import lora_plan_of
        from llm.parallel.tensor_parallel_plan import require_complete_plan

        size, model = self.size or world, task.get_submodule("model")
        if size > 1:
            require_complete_plan(model, lora_plan_of(model, size))
