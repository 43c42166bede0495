"""A gate on the output of a layer, one number for each token (Qwen Team 2024, Qwen1.5-MoE)."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn


class TokenGate(nn.Module):
    """layer(x) · sigmoid(gate(x)): each token decides how much of a layer's output it takes.

    Qwen3-Next has it on the expert that computes every token, beside those that the router chooses.

    Args:
        dim: width C of the model.
        layer: makes the layer for a width.
        bias: whether the projection of the gate has a bias.
    """

    def __init__(self, dim: int, *, layer: Callable[[int], nn.Module], bias: bool = True) -> None:
        super().__init__()
        self.layer = layer(dim)
        self.gate = nn.Linear(dim, 1, bias=bias)

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Return the gated output of the layer for each position of `x`."""
        # (…, C) · (…, 1): one factor for all columns of a token.
        return self.layer(x) * self.gate(x).sigmoid()
