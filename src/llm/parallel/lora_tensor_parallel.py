"""How an adapted GPT is divided among devices: the plan of the GPT, and LoRA's updates beside its layers."""

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

from llm.adapters.lora import LoRALinear, LowRank
from llm.parallel import tensor_parallel_plan
from llm.parallel.tensor_parallel_plan import Heads, Plan, reorder_rows


def lora_plan_of(model: nn.Module, size: int) -> Plan:
    """What becomes of each part of a model on `size` devices, by the part's name.

    Raises:
        ValueError: the model holds no GPT, or has a part that so many cannot share.
    """
    plan = tensor_parallel_plan.plan_of(model, size)
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            style = _beside(plan[f"{name}.base"], layer.base, size=size)
            for update, module in layer.named_modules():
                if isinstance(module, LowRank):
                    _require_no_dropout(module)
                    plan[f"{name}.{update}"] = style
            plan[f"{name}.base"] = Cloned(plan[f"{name}.base"])
    return plan


def _beside(style: ParallelStyle, base: nn.Linear, *, size: int) -> ParallelStyle:
    """How an update is divided, from how its layer is."""
    if not isinstance(style, ColwiseParallel):
        return ByInputs()
    order = style.order(size) if isinstance(style, Heads) else torch.arange(base.out_features)
    return ByOutputs(order, style.output_layouts[0])


class Cloned(ParallelStyle):
    """A layer whose outputs are memory of their own, so that updates may be added to them in place.

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


class ByOutputs(ParallelStyle):
    """An update of a layer that is divided by its outputs: every device has A, and its own rows of B.

    Args:
        order: which of the layer's rows stands where.
        output: how the layer's outputs are wanted: divided, or whole on every device.
    """

    def __init__(self, order: Int[Tensor, "rows"], output: Placement) -> None:
        super().__init__()
        self.order, self.output = order, output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        update = cast(LowRank, module)
        mask = (self.order >= update.rows.start) & (self.order < update.rows.stop)
        reorder_rows(update, {"up": self.order[mask] - update.rows.start})
        if not self.output.is_replicate():
            mine = mask.chunk(device_mesh.size())[device_mesh.get_local_rank()].nonzero()
            update.rows = slice(int(mine.min()), int(mine.max()) + 1)
        return _distributed(
            update,
            device_mesh,
            down=Replicate(),
            up=Shard(0),
            inputs=Replicate(),
            outputs=self.output,
        )


class ByInputs(ParallelStyle):
    """An update of a layer that is divided by its inputs: each device has its columns of A, and all of B."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        update = cast(LowRank, module)
        return _distributed(
            update,
            device_mesh,
            down=Shard(1),
            up=Replicate(),
            inputs=Shard(-1),
            outputs=Replicate(),
        )


def _distributed(
    update: LowRank,
    mesh: DeviceMesh,
    *,
    down: Placement,
    up: Placement,
    inputs: Placement,
    outputs: Placement,
) -> nn.Module:
    for name, placement in (("down", down), ("up", up)):
        own = update.get_parameter(name)
        divided = distribute_tensor(own.data, mesh, [placement], src_data_rank=None)
        update.register_parameter(name, nn.Parameter(divided, own.requires_grad))

    def take(module: nn.Module, given: tuple[Tensor], mesh: DeviceMesh) -> DTensor:
        return DTensor.from_local(given[0], mesh, [inputs])

    def give(module: nn.Module, result: DTensor, mesh: DeviceMesh) -> Tensor:
        return result.redistribute(placements=[outputs]).to_local()

    # Its annotations forget that what the functions return is taken.
    return distribute_module(update, mesh, input_fn=cast(Any, take), output_fn=cast(Any, give))


def _require_no_dropout(update: LowRank) -> None:
    if update.dropout.p > 0:
        raise ValueError(
            "adapter.dropout: devices that share a layer would drop different inputs of its update; set it to 0"
        )
