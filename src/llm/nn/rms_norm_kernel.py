"""RMSNorm for a CPU, for which torch has no kernel; `llm.nn.norms.naive_rms_norm` is its definition."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class RMSNormKernel(torch.autograd.Function):
    """RMSNorm with a gradient derived by hand, in a third of the time that autograd takes.

    With r = 1/√(mean(x²) + eps) the output is y = x · r · w. Let g be the gradient of y and p = g · x. The
    gradient of w is Σ r · p over all rows, and that of x is r · w · g - x · r³ · (p·w) / C.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return `x` (…, C), normalized and scaled by `weight` (C)."""
        # Squares are summed in the weight's float32: bfloat16 keeps 8 significant bits.
        wide = x.to(weight.dtype)
        # vector_norm only reads x; x.square().mean() would write x² to memory first.
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1]
        scale = (mean_square + eps).rsqrt()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of `x` and of `weight`, given that of the output."""
        x, weight, scale = ctx.saved_tensors
        wide, grad = x.to(weight.dtype), grad.to(weight.dtype)
        product = (grad * wide).reshape(-1, x.shape[-1])
        along = (product @ weight).view_as(scale) * scale**3 / -x.shape[-1]
        # In place: one buffer of the size of x instead of three.
        grad_x = (grad * weight).mul_(scale).addcmul_(wide, along)
        return grad_x.to(x.dtype), scale.reshape(-1) @ product, None
