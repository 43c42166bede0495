"""LoRA for the stacked matrices of a mixture of experts: each expert has an A and a B of its own.

An update computes the rows of all experts in two products. It does not add ΔW to the stack, which would take the memory
of a second stack of weights.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm.adapters.low_rank import LoRALayer, LowRank
from llm.nn.stacked_linear import StackedLinear, stacked_product


class StackedLowRank(LowRank):
    """Updates of E matrices: A is (E, r, inputs) and B is (E, rows, r)."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "M inputs"], ends: Int[Tensor, "E"]
    ) -> Float[Tensor, "M rows"]:
        """Return the change of the outputs; the arguments are those of `StackedLinear`."""
        hidden = stacked_product(self.dropout(x), self.down, ends)  # (M, inputs) -> (M, r)
        return self.scale * stacked_product(hidden, self.up, ends)

    def one(self, index: int, x: Float[Tensor, "*B inputs"]) -> Float[Tensor, "*B rows"]:
        """Return the change of the outputs of layer `index`."""
        down, up = (stack[index].to(x.dtype) for stack in (self.down, self.up))
        return self.scale * F.linear(F.linear(self.dropout(x), down), up)


class LoRAStack(LoRALayer):
    """A stack of linear layers with low-rank updates.

    Attributes:
        base: the frozen stack.
    """

    kind = StackedLowRank

    def __init__(self, base: StackedLinear) -> None:
        super().__init__()
        self.base = base

    @property
    def weight(self) -> Tensor:
        """Return the matrices of `base`, for callers that need their device, dtype or shape."""
        return self.base.weight

    def forward(
        self, x: Float[Tensor, "M inputs"], ends: Int[Tensor, "E"]
    ) -> Float[Tensor, "M outputs"]:
        """Return the outputs of `base` with the updates."""
        y = self.base(x, ends)
        for update in self.updates():
            y = y + update(x, ends)
        return y

    def one(self, index: int, x: Float[Tensor, "*B inputs"]) -> Float[Tensor, "*B outputs"]:
        """Return the outputs of layer `index` with its updates."""
        y = self.base.one(index, x)
        for update in self.updates():
            y = y + update.one(index, x)
        return y

    @torch.no_grad()
    def merge(self, model: nn.Module, name: str) -> None:
        """Put one stack that computes the same into a model: `base` itself without active updates, else a new one."""
        base, layer = self.base, self.base
        if self.updates():
            weight = self.added(base.weight)
            with torch.device("meta"):
                layer = StackedLinear(*weight.shape, bias=False)
            layer.weight = nn.Parameter(weight, requires_grad=False)
            if base.bias is not None:
                layer.bias = nn.Parameter(base.bias.to(weight.dtype), requires_grad=False)
        model.set_submodule(name, layer.train(self.training))
