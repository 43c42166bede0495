"""Normalisation: LayerNorm and RMSNorm, each written out and each beside a fast kernel."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
    """The same as `naive_rms_norm`, by torch's kernel; on a CPU, where it has none, by ours."""
    if x.device.type == "cpu":
        return _RMSNormOnCPU.apply(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


class _RMSNormOnCPU(torch.autograd.Function):
    """The norm with its gradient worked out by hand: a third of the time that autograd takes.

    With r = 1/√(mean(x²) + eps), y = x · r · w, and p = gradient of y, times x:
    the gradient of w is Σ r · p over all rows, that of x is r · w · gradient - x · r³ · (p·w) / C.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(weight.dtype)
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1]
        scale = (mean_square + eps).rsqrt()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        wide, grad = x.to(weight.dtype), grad.to(weight.dtype)
        product = (grad * wide).reshape(-1, x.shape[-1])
        along = (product @ weight).view_as(scale) * scale**3 / -x.shape[-1]
        grad_x = (grad * weight).mul_(scale).addcmul_(wide, along)
        return grad_x.to(x.dtype), scale.reshape(-1) @ product, None


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
