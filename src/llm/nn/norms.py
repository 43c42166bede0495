"""LayerNorm and three kinds of RMSNorm; each is defined by a naive kernel and computed by a fast one."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from llm.nn.rms_norm_kernel import RMSNormKernel

Kernel = Callable[..., Tensor]


def naive_layer_norm(
    x: Float[Tensor, "*B C"],
    weight: Float[Tensor, "C"],
    *,
    bias: Float[Tensor, "C"] | None,
    eps: float,
) -> Float[Tensor, "*B C"]:
    """Normalize each row to mean 0 and variance 1, scale and shift (Ba et al. 2016, equation 3)."""
    centered = x - x.mean(dim=-1, keepdim=True)
    # The variance of these C numbers: divide by C and not by C - 1.
    variance = centered.square().mean(dim=-1, keepdim=True)
    # eps prevents a division by 0: a row of equal numbers gives 0 instead of NaN.
    normal = centered / torch.sqrt(variance + eps)
    return normal * weight if bias is None else normal * weight + bias


def fused_layer_norm(
    x: Float[Tensor, "*B C"],
    weight: Float[Tensor, "C"],
    *,
    bias: Float[Tensor, "C"] | None,
    eps: float,
) -> Float[Tensor, "*B C"]:
    """Compute the same as `naive_layer_norm` in one kernel."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def naive_rms_norm(
    x: Float[Tensor, "*B C"], weight: Float[Tensor, "C"], *, eps: float
) -> Float[Tensor, "*B C"]:
    """Normalize each row to mean square 1 and scale (Zhang and Sennrich 2019, equation 4).

    Unlike LayerNorm it subtracts no mean and adds no shift.
    """
    mean_square = x.square().mean(dim=-1, keepdim=True)
    return x / torch.sqrt(mean_square + eps) * weight


def fused_rms_norm(
    x: Float[Tensor, "*B C"], weight: Float[Tensor, "C"], *, eps: float
) -> Float[Tensor, "*B C"]:
    """Compute the same as `naive_rms_norm` in one kernel: torch's, or ours on a CPU."""
    if x.device.type == "cpu":
        return RMSNormKernel.apply(x, weight, eps)
    # Under autocast x may be bfloat16 while the weight is float32; the kernel needs one dtype.
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


class LayerNorm(nn.Module):
    """Layer normalization over the last axis.

    Args:
        dim: width C of the axis.
        eps: added to the variance.
        bias: whether to learn a shift as well as a scale.
        kernel: the function that computes it: `naive_layer_norm` or an equivalent.
    """

    def __init__(
        self, dim: int, *, eps: float = 1e-5, bias: bool = True, kernel: Kernel = fused_layer_norm
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.eps = eps
        self.kernel = kernel

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Return the normalized rows of `x`."""
        return self.kernel(x, self.weight, bias=self.bias, eps=self.eps)

    def reset_parameters(self) -> None:
        """Set the scale to 1 and the shift to 0."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class RMSNorm(nn.Module):
    """Root-mean-square normalization over the last axis.

    Args:
        dim: width C of the axis.
        eps: added to the mean square.
        kernel: the function that computes it: `naive_rms_norm` or an equivalent.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, kernel: Kernel = fused_rms_norm) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.kernel = kernel

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Return the normalized rows of `x`."""
        return self.kernel(x, self.weight, eps=self.eps)

    def reset_parameters(self) -> None:
        """Set the scale to 1."""
        nn.init.ones_(self.weight)


class ZeroCenteredRMSNorm(RMSNorm):
    """RMSNorm that scales by 1 + w, with w = 0 at first (Gemma Team 2024).

    The network is the same as with RMSNorm. But weight decay, in optimizers that apply it to norms, pulls the scale
    towards 1 and not towards 0. In bfloat16, w near 0 also has more significant digits than a scale near 1.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, kernel: Kernel = fused_rms_norm) -> None:
        super().__init__(dim, eps=eps, kernel=kernel)
        self.reset_parameters()

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Return the normalized rows of `x`."""
        return self.kernel(x, 1 + self.weight, eps=self.eps)

    def reset_parameters(self) -> None:
        """Set w to 0."""
        nn.init.zeros_(self.weight)


class WeightlessRMSNorm(nn.Module):
    """RMSNorm without a scale, so without parameters: the next matrix can scale its inputs itself.

    Groeneveld et al. 2024 (OLMo, section 2.1) leave out the parameters of LayerNorm.

    Args:
        dim: width C of the axis.
        eps: added to the mean square.
        kernel: the function that computes it: `naive_rms_norm` or an equivalent.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, kernel: Kernel = fused_rms_norm) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.kernel = kernel

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Return the normalized rows of `x`."""
        # The kernel sums in the dtype of the scale, which is at least float32 in the other norms too.
        dtype = torch.promote_types(x.dtype, torch.float32)
        return self.kernel(x, torch.ones(self.dim, dtype=dtype, device=x.device), eps=self.eps)
