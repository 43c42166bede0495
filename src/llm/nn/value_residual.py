"""A residual connection of the values (Zhou et al. 2024, "Value residual learning", ResFormer).

The first layer's values are closest to the tokens themselves. In deep layers, whose states have mixed many tokens, they
bring back what a single token is.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ValueResidual(nn.Module):
    """λ₁ · V₁ + λ₂ · Vₙ: the first layer's values and those of layer n, with two learned factors for the layer.

    The weighted sum replaces the layer's own values before attention, so the cache contains it in their place.

    Args:
        first: λ₁ before training.
        own: λ₂ before training.
    """

    def __init__(self, *, first: float = 0.5, own: float = 0.5) -> None:
        super().__init__()
        self.initial = (first, own)
        self.weight = nn.Parameter(torch.tensor(self.initial))

    def forward(
        self, own: Float[Tensor, "B K T D"], *, first: Float[Tensor, "B K T D"]
    ) -> Float[Tensor, "B K T D"]:
        """Return the mixed values of the new tokens."""
        return self.weight[0] * first + self.weight[1] * own

    def reset_parameters(self) -> None:
        """Set the factors to the initial ones."""
        with torch.no_grad():
            self.weight.copy_(self.weight.new_tensor(self.initial))
