"""The tensor-parallel plan of a GPT: how a group of devices divides the modules of each layer.

The plan uses the styles of `torch.distributed.tensor.parallel` and does not change the model's code. Each device has
whole attention heads and a slice of the feed-forward layer's width. One sum over the devices for each sublayer restores
the residual stream (Shoeybi et al. 2019, Megatron-LM, section 3). Embedding and head are divided along the
vocabulary; norms and positions are replicated.

The residual stream and its dropout must be the same on all devices, so the devices share a seed. Attention dropout is
then the same in the corresponding heads of different devices.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_module,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.utils.parametrize import type_before_parametrizations

from llm.models.classifier import AttentionPooling, Classifier
from llm.models.gpt import GPT
from llm.nn.attention import Attention
from llm.nn.feed_forward import FeedForward, GatedFeedForward
from llm.nn.norms import LayerNorm, RMSNorm, ZeroCenteredRMSNorm
from llm.nn.positions import ALiBi, Learned, Positions, as_index
from llm.nn.qk_norm import AcrossHeads
from llm.nn.shared_attention import SharedKVAttention
from llm.nn.value_residual import ValueResidual

Plan = dict[str, ParallelStyle]


def plan_of(model: nn.Module, size: int) -> Plan:
    """Return the style of each module of a model on `size` devices, by name.

    Raises:
        ValueError: the model contains no GPT, or a part that cannot be divided among so many devices.
    """
    if not any(isinstance(module, GPT) for module in model.modules()):
        raise ValueError(
            f"tensor parallelism divides a GPT, and {type(model).__name__} contains none: use hardware=fsdp"
        )
    plan: Plan = {}
    for name, module in model.named_modules():
        parts = STYLES[type(module)](module, size) if type(module) in STYLES else {}
        for part, style in parts.items():
            # named_modules yields an attention layer before its norms, so its style for them is kept.
            plan.setdefault(_linear(model, f"{name}.{part}".strip(".")), style)
    return plan


def parallelize(model: nn.Module, mesh: DeviceMesh, *, plan: Plan) -> None:
    """Divide a model in place. Every parameter becomes a DTensor, and tied parameters stay tied.

    Args:
        model: the model, with the same values on every device.
        mesh: a mesh of one dimension.
        plan: a style for each module with parameters, see `plan_of`.
    """
    tied = _tied(model)
    for name, style in plan.items():
        parallelize_module(model.get_submodule(name), mesh, style, src_data_rank=None)
    for owner, name, first in tied:
        setattr(owner, name, model.get_parameter(first))
    for module in model.modules():
        if isinstance(module, Attention):
            module.num_heads //= mesh.size()
            module.num_kv_heads //= mesh.size()
    for parameter in cast(Iterator[DTensor], model.parameters()):
        if parameter.requires_grad:
            parameter.register_hook(partial(DTensor.redistribute, placements=parameter.placements))


def require_complete_plan(model: nn.Module, plan: Plan) -> None:
    """Raise a ValueError for the first parameter of a model that is not in its plan."""
    for name, _ in model.named_parameters():
        if not any(name.startswith(f"{part}.") for part in plan):
            raise ValueError(
                f"{name}: tensor parallelism cannot divide {_layer_of(model, name)}: use hardware=fsdp"
            )


def _layer_of(model: nn.Module, name: str) -> str:
    """Return the class of the innermost module that contains a parameter, and is neither torch's nor an adapter's."""
    path = name.split(".")[:-1]
    owners = [model.get_submodule(".".join(path[:end])) for end in range(len(path), -1, -1)]
    kinds = [type_before_parametrizations(owner) for owner in owners]
    others = ("torch.", "llm.adapters.")
    return next(kind.__name__ for kind in kinds if not kind.__module__.startswith(others))


def row_orders(model: nn.Module) -> dict[int, Int[Tensor, "rows"]]:
    """Return the original row at each position, by the id of each parameter that `reorder_rows` changed."""
    return {
        id(module.get_parameter(name)): order
        for module in model.modules()
        for name, order in getattr(module, "row_order", {}).items()
    }


def _language_model(module: GPT, size: int) -> Plan:
    plan: Plan = {"embedding": RowwiseParallel(input_layouts=Replicate())}
    if not isinstance(module.head, nn.Identity):  # a classifier has removed it
        plan["head"] = ColwiseParallel(output_layouts=Replicate())
    return plan


def _attention(module: Attention, size: int) -> Plan:
    heads, kv_heads = module.num_heads, module.num_kv_heads
    _require_divisor("num_heads", heads, size=size)
    _require_divisor("num_kv_heads", kv_heads, size=size)
    plan: Plan = {
        "query_key_value": Heads((heads, kv_heads, kv_heads), module.head_dim),
        "output": RowwiseParallel(),
    }
    return plan | _parts_of_heads(module, "query_norm", "key_norm")


def _shared_attention(module: SharedKVAttention, size: int) -> Plan:
    """Divide the heads; the keys and values that a device gets are those of its own heads."""
    _require_divisor("num_heads", module.num_heads, size=size)
    plan: Plan = {"query": ColwiseParallel(), "output": RowwiseParallel()}
    return plan | _parts_of_heads(module, "query_norm")


def _parts_of_heads(module: Attention | SharedKVAttention, *norms: str) -> Plan:
    plan: Plan = {}
    for name in norms:
        if isinstance(getattr(module, name), AcrossHeads):
            raise ValueError(
                "qk_norm_over=all_heads: tensor parallelism divides the heads, and this norm needs all of them: use "
                "hardware=fsdp, or model/attention=qk_norm"
            )
        if getattr(module, name) is not None:
            plan[name] = ReplicatedNorm(Partial())  # each device's gradient is that of its heads
    if module.output_gate is not None:
        plan["output_gate.projection"] = ColwiseParallel()
    return plan


def _feed_forward(module: FeedForward | GatedFeedForward, size: int) -> Plan:
    _require_divisor("hidden_dim", module.output.weight.shape[1], size=size)
    outputs = {name: ColwiseParallel() for name in ("gate", "input") if hasattr(module, name)}
    return {**outputs, "output": RowwiseParallel()}


def _classifier(module: Classifier, size: int) -> Plan:
    """Divide the head by its inputs, because the number of classes may not be divisible."""
    return {"head": RowwiseParallel(input_layouts=Replicate())}


# The styles of the submodules of each class; "" is the module itself.
STYLES: dict[type[nn.Module], Callable[[Any, int], Plan]] = {
    GPT: _language_model,
    Attention: _attention,
    SharedKVAttention: _shared_attention,
    ValueResidual: lambda module, size: {"": ReplicatedFactors()},
    FeedForward: _feed_forward,
    GatedFeedForward: _feed_forward,
    LayerNorm: lambda module, size: {"": ReplicatedNorm()},
    RMSNorm: lambda module, size: {"": ReplicatedNorm()},
    ZeroCenteredRMSNorm: lambda module, size: {"": ReplicatedNorm()},
    Learned: lambda module, size: {"": ReplicatedPositions()},
    ALiBi: lambda module, size: {"": ShardedSlopes()},
    Classifier: _classifier,
    AttentionPooling: lambda module, size: {"": ReplicatedPooling()},
}


def _require_divisor(name: str, number: int, *, size: int) -> None:
    if number % size:
        raise ValueError(
            f"{name}={number} cannot be divided among {size} devices: give a hardware.strategy.size that divides it "
            "and the number of devices"
        )


def _linear(model: nn.Module, name: str) -> str:
    """Return the name of a linear layer, or of its `base` if LoRA has replaced the layer."""
    is_adapted = isinstance(getattr(model.get_submodule(name), "base", None), nn.Linear)
    return f"{name}.base" if is_adapted else name


class Heads(ColwiseParallel):
    """The fused projection of queries, keys and values, divided by heads.

    Its rows are H query heads, then K key heads, then K value heads, and a device needs some of each. So the rows
    of a device are first made adjacent. Muon does not depend on the order of the rows; checkpoints undo it
    (`row_orders`).

    Args:
        counts: numbers of query, key and value heads.
        head_dim: rows of a head.
    """

    def __init__(self, counts: tuple[int, int, int], head_dim: int) -> None:
        super().__init__()
        self.counts = counts
        self.head_dim = head_dim

    def order(self, size: int) -> Int[Tensor, "rows"]:
        """Return the row at each position, for `size` devices."""
        rows = torch.arange(sum(self.counts) * self.head_dim).view(-1, self.head_dim)
        shares = zip(*(part.chunk(size) for part in rows.split(self.counts)), strict=True)
        return torch.cat([part.flatten() for share in shares for part in share])

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        order = self.order(device_mesh.size())
        reorder_rows(module, {name: order for name, _ in module.named_parameters()})
        return super()._apply(module, device_mesh)


def reorder_rows(module: nn.Module, orders: dict[str, Int[Tensor, "rows"]]) -> None:
    """Reorder the rows of a module's parameters, and store the order for `row_orders`."""
    for name, order in orders.items():
        parameter = module.get_parameter(name)
        parameter.data = parameter.data[order]
    module.row_order = orders  # pyright: ignore[reportArgumentType]


class ReplicatedNorm(ParallelStyle):
    """A norm that every device has.

    Args:
        gradient: placement of its parameters' gradients: `Partial` (summed over the devices) if they normalize
            different heads; by default `Replicate`, if they normalize the same stream.
    """

    def __init__(self, gradient: Placement | None = None) -> None:
        super().__init__()
        self.gradient = gradient or Replicate()

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        norm = cast(LayerNorm | RMSNorm, module)
        norm.kernel = partial(self._local, norm.kernel)
        return distribute_module(module, device_mesh)

    def _local(
        self, kernel: Callable[..., Tensor], x: Tensor, weight: Tensor, **given: Any
    ) -> Tensor:
        """Call the kernel with plain tensors."""
        parameters = {"weight": weight, **given}
        for name, parameter in parameters.items():
            if isinstance(parameter, DTensor):
                parameters[name] = parameter.to_local(grad_placements=[self.gradient])
        return kernel(x, **parameters)


class ReplicatedFactors(ParallelStyle):
    """The factors of a value residual, which every device has and applies to its own heads."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        forward = module.forward

        def own_heads(
            own: Float[Tensor, "B K T D"], *, first: Float[Tensor, "B K T D"]
        ) -> Float[Tensor, "B K T D"]:
            # As a shard of all heads, so that the gradient of a factor is the sum over the devices.
            own, first = (DTensor.from_local(t, device_mesh, [Shard(1)]) for t in (own, first))
            return cast(DTensor, forward(own, first=first)).to_local()

        module.forward = own_heads
        return distribute_module(module, device_mesh)


class ReplicatedPositions(ParallelStyle):
    """Learned positions that every device has."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        position = cast(Learned, module)
        embed = position.embed

        def on_every_device(
            x: Float[Tensor, "B T C"], positions: Positions
        ) -> Float[Tensor, "B T C"]:
            given = (x, as_index(positions, x.device))
            x, index = (DTensor.from_local(t, device_mesh, [Replicate()]) for t in given)
            return cast(DTensor, embed(x, index)).to_local()

        position.embed = on_every_device
        return distribute_module(module, device_mesh)


class ReplicatedPooling(ParallelStyle):
    """A pooling module that every device has."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def replicated(module: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
            return tuple(
                t if t is None else DTensor.from_local(t, mesh, [Replicate()]) for t in inputs
            )

        def local(module: nn.Module, output: Any, mesh: DeviceMesh) -> Any:
            return output.to_local()

        return distribute_module(module, device_mesh, input_fn=replicated, output_fn=local)


class ShardedSlopes(ParallelStyle):
    """ALiBi, of which each device has the slopes of its own heads."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        position, rank = cast(ALiBi, module), device_mesh.get_local_rank()
        bias = position.bias

        def own(
            x: Tensor, *, query_positions: Positions, key_positions: Positions
        ) -> Float[Tensor, "*rows H T S"]:
            every = bias(x, query_positions=query_positions, key_positions=key_positions)
            return every.chunk(device_mesh.size(), dim=-3)[rank]

        position.bias = own
        return module


def _tied(model: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """Return each further use of a tied parameter: the module, the name there, and the first full name."""
    first: dict[int, str] = {}
    again = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            owner, _, own = name.rpartition(".")
            again.append((model.get_submodule(owner), own, first[id(parameter)]))
    return again
