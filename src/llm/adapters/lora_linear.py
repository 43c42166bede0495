"""LoRA for a linear layer or its sections."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm.adapters.low_rank import LoRALayer


class LoRALinear(LoRALayer):
    """A linear layer with low-rank updates.

    Attributes:
        base: the frozen layer.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    @property
    def weight(self) -> Tensor:
        """Return the W of `base`, for callers that need its device, dtype or shape."""
        return self.base.weight

    def forward(self, x: Float[Tensor, "*B inputs"]) -> Float[Tensor, "*B outputs"]:
        """Return the outputs of `base` with the updates."""
        y = self.base(x)
        for update in self.updates():
            y[..., update.rows].add_(update(x))
        return y

    def merge(self, model: nn.Module, name: str) -> None:
        """Put one layer that computes the same into a model."""
        model.set_submodule(name, self.merged())

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return one layer that computes the same: `base` itself without active updates, else a new one.

        The new W is not tied and has the dtype of the updates, because that of `base` may be narrower.
        """
        base = self.base
        if not self.updates():
            return base
        weight = self.added(base.weight)
        layer = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if base.bias is not None:
            layer.bias = nn.Parameter(base.bias.to(weight.dtype), requires_grad=False)
        return layer.train(self.training)
