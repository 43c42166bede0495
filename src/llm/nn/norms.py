"""Normalisation: LayerNorm and RMSNorm, each written out and each beside a fast kernel."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Kernel = Callable[..., Tensor]


def naive_layer_norm(
    x: Float[Tensor, "*B C"],
    weight: Float[Tensor, "C"],
    bias: Float[Tensor, "C"] | None,
    eps: float,
) -> Float[Tensor, "*B C"]:
    """Each row to mean 0 and variance 1, then scaled and shifted (Ba et al. 2016, equation 3)."""
    centered = x - x.mean(dim=-1, keepdim=True)
    variance = centered.square().mean(dim=-1, keepdim=True)
    normal = centered / torch.sqrt(variance + eps)
    return normal * weight if bias is None else normal * weight + bias


def fused_layer_norm(
    x: Float[Tensor, "*B C"],
    weight: Float[Tensor, "C"],
    bias: Float[Tensor, "C"] | None,
    eps: float,
) -> Float[Tensor, "*B C"]:
    """The same as `naive_layer_norm`, in one kernel."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def naive_rms_norm(
    x: Float[Tensor, "*B C"], weight: Float[Tensor, "C"], eps: float
) -> Float[Tensor, "*B C"]:
    """Each row to mean square 1, then scaled (Zhang and Sennrich 2019, equation 4)."""
    mean_square = x.square().mean(dim=-1, keepdim=True)
    return x / torch.sqrt(mean_square + eps) * weight


def fused_rms_norm(
    x: Float[Tensor, "*B C"], weight: Float[Tensor, "C"], eps: float
) -> Float[Tensor, "*B C"]:
    """The same as `naive_rms_norm`, in one kernel where the device has one."""
    return F.rms_norm(x, weight.shape, weight, eps)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis.

    Args:
        dim: width C of the axis.
        eps: added to the variance.
        bias: whether to learn a shift beside the scale.
        kernel: what computes it, `naive_layer_norm` or its equal.
    """

    def __init__(
        self, dim: int, eps: float = 1e-5, bias: bool = True, kernel: Kernel = fused_layer_norm
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.eps = eps
        self.kernel = kernel

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Normalises each row of `x`."""
        return self.kernel(x, self.weight, self.bias, self.eps)

    def reset_parameters(self) -> None:
        """Scale 1 and shift 0."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis.

    Args:
        dim: width C of the axis.
        eps: added to the mean square.
        kernel: what computes it, `naive_rms_norm` or its equal.
    """

    def __init__(self, dim: int, eps: float = 1e-5, kernel: Kernel = fused_rms_norm) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.kernel = kernel

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Normalises each row of `x`."""
        return self.kernel(x, self.weight, self.eps)

    def reset_parameters(self) -> None:
        """Scale 1."""
        nn.init.ones_(self.weight)
