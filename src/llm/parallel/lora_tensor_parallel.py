"""Tensor parallelism of a GPT with LoRA: low-rank updates are divided like their layers."""

from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle

from llm.adapters.lora_linear import LoRALinear
from llm.adapters.low_rank import LowRank
from llm.parallel.tensor_parallel_plan import (
    Heads,
    Plan,
    plan_of,
    reorder_rows,
    require_complete_plan,
)


def complete_plan_of(model: nn.Module, size: int) -> Plan:
    """Return the style of each module of a model, with or without LoRA, on `size` devices, by name.

    Raises:
        ValueError: the model contains no GPT, or a part that cannot be divided among so many devices.
    """
    plan = plan_of(model, size)
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear) and f"{name}.base" in plan:  # others are refused below
            style = _update_style(plan[f"{name}.base"], layer.base, size=size)
            for update, module in layer.named_modules():
                if isinstance(module, LowRank):
                    if module.dropout.p > 0:
                        raise ValueError(
                            "adapter.dropout: devices that share a layer would drop different inputs of its update; "
                            "set it to 0"
                        )
                    plan[f"{name}.{update}"] = style
            plan[f"{name}.base"] = Cloned(plan[f"{name}.base"])
    require_complete_plan(model, plan)
    return plan


def _update_style(style: ParallelStyle, base: nn.Linear, *, size: int) -> ParallelStyle:
    """Return the style of a layer's updates, given the style of the layer."""
    if not isinstance(style, ColwiseParallel):
        return DividedUpdate(None, Replicate())
    order = style.order(size) if isinstance(style, Heads) else torch.arange(base.out_features)
    return DividedUpdate(order, style.output_layouts[0])


class Cloned(ParallelStyle):
    """A layer whose outputs are copied, so that updates can be added in place.

    Args:
        style: how the layer is divided.
    """

    def __init__(self, style: ParallelStyle) -> None:
        super().__init__()
        self.style = style

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        self.style.src_data_rank = self.src_data_rank
        module = self.style._apply(module, device_mesh)
        module.register_forward_hook(lambda module, inputs, outputs: outputs.clone())
        return module


class DividedUpdate(ParallelStyle):
    """A low-rank update, divided like its layer.

    If the layer is divided by outputs, each device has the whole A and its rows of B. If it is divided by inputs, each
    device has its columns of A and the whole B.

    Args:
        order: the row at each position of a layer divided by outputs; None for one divided by inputs.
        output: placement of the layer's outputs.
    """

    def __init__(self, order: Int[Tensor, "rows"] | None, output: Placement) -> None:
        super().__init__()
        self.order, self.output = order, output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        update = cast(LowRank, module)
        if self.order is None:
            down, up, inputs = Shard(1), Replicate(), Shard(-1)
        else:
            down, up, inputs = Replicate(), Shard(0), Replicate()
            self._divide_rows(update, self.order, device_mesh)
        for name, placement in (("down", down), ("up", up)):
            own = update.get_parameter(name)
            divided = distribute_tensor(own.data, device_mesh, [placement], src_data_rank=None)
            update.register_parameter(name, nn.Parameter(divided, own.requires_grad))

        def to_dtensor(module: nn.Module, given: tuple[Tensor], mesh: DeviceMesh) -> DTensor:
            return DTensor.from_local(given[0], mesh, [inputs])

        def to_tensor(module: nn.Module, result: DTensor, mesh: DeviceMesh) -> Tensor:
            return result.redistribute(placements=[self.output]).to_local()

        # torch annotates that these functions return nothing, but it uses what they return.
        return distribute_module(
            update, device_mesh, input_fn=cast(Any, to_dtensor), output_fn=cast(Any, to_tensor)
        )

    def _divide_rows(self, update: LowRank, order: Int[Tensor, "rows"], mesh: DeviceMesh) -> None:
        """Order the rows of B like the layer's, and set `rows` to those that this device computes."""
        mask = (order >= update.rows.start) & (order < update.rows.stop)
        reorder_rows(update, {"up": order[mask] - update.rows.start})
        if not self.output.is_replicate():
            mine = mask.chunk(mesh.size())[mesh.get_local_rank()].nonzero()
            update.rows = slice(int(mine.min()), int(mine.max()) + 1)
