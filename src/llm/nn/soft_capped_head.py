"""A head with bounded logits."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SoftCappedHead(nn.Linear):
    """Logits c · tanh(z / c) of a linear layer's outputs z: between -c and c (Gemma Team 2024, Gemma 2, section 2).

    Small logits hardly change. Large ones get a small gradient, so that training does not make them ever larger.

    Args:
        in_features: width C of the model.
        out_features: number V of tokens.
        bias: whether the linear layer has a bias.
        device: device of the parameters.
        softcap: the bound c.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        softcap: float = 30.0,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device)
        self.softcap = softcap

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "*B C"]
    ) -> Float[Tensor, "*B V"]:
        """Return the bounded logits."""
        return self.softcap * torch.tanh(super().forward(x) / self.softcap)
