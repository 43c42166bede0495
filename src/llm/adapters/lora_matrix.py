"""LoRA for a matrix that a module reads as a tensor, such as those of LSTM and GRU.

The fused kernels of these layers take whole matrices, so each forward pass adds ΔW to W. torch's parametrization does
it whenever the module reads its matrix.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from llm.adapters.low_rank import LoRALayer


class LoRAMatrix(LoRALayer):
    """A parametrization of a matrix, which adds low-rank updates to it."""

    def forward(self, weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
        """Return the matrix with the updates."""
        return self.added(weight)

    @torch.no_grad()
    def merge(self, model: nn.Module, name: str) -> None:
        """Give the module its matrix back, with the active updates."""
        *owner, _, matrix, _ = name.split(".")  # such as blocks.0.attention.parametrizations.w.0
        module = model.get_submodule(".".join(owner))
        merged = getattr(module, matrix)
        parametrize.remove_parametrizations(module, matrix, leave_parametrized=False)
        if self.updates():
            setattr(module, matrix, nn.Parameter(merged, requires_grad=False))
