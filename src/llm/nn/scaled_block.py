"""A block that multiplies the output of each sublayer by learned numbers."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm.nn.block import Block


class LayerScale(nn.Module):
    """A learned factor for each column (Touvron et al. 2021, "Going deeper with image transformers", 2.2).

    Sublayers begin with a small weight in the residual stream, so that a deep stack is close to the identity. The paper
    begins with 0.1 up to 18 layers, 1e-5 for 24 layers and 1e-6 for more.

    Args:
        dim: width C of the stream.
        initial: the factor before training.
    """

    def __init__(self, dim: int, *, initial: float = 0.1) -> None:
        super().__init__()
        self.initial = initial
        self.weight = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Return the scaled output of a sublayer."""
        return x * self.weight

    def reset_parameters(self) -> None:
        """Set all factors to the initial one."""
        nn.init.constant_(self.weight, self.initial)


class ReZero(LayerScale):
    """One learned factor for all columns, 0 at first: the stack begins as the identity (Bachlechner et al. 2021).

    At first only the factors have a gradient. Once they are not 0, the sublayers learn too.

    Args:
        dim: width C of the stream; the factor is the same for any.
        initial: the factor before training.
    """

    def __init__(self, dim: int, *, initial: float = 0.0) -> None:
        super().__init__(1, initial=initial)


class ScaledBlock(Block):
    """Sublayers with scaled outputs: with `pre_norm`, x + scale(sublayer(norm(x))).

    `shared` are the other arguments, those of `Block`.

    Args:
        scale: makes the factors of a sublayer for a width: `LayerScale` or `ReZero`.
    """

    def __init__(
        self, dim: int, *, scale: Callable[[int], nn.Module] = LayerScale, **shared: Any
    ) -> None:
        super().__init__(dim, **shared)
        self.attention_scale = scale(dim)
        self.feed_forward_scale: Any = scale(dim) if self.feed_forward is not None else None

    def _attend(self, x: Float[Tensor, "B T C"], **inputs: Any) -> Float[Tensor, "B T C"]:
        return self.attention_scale(super()._attend(x, **inputs))

    def _feed_forward(self, x: Float[Tensor, "B T C"], **inputs: Any) -> Float[Tensor, "B T C"]:
        return self.feed_forward_scale(super()._feed_forward(x, **inputs))
