"""Activation functions, applied element by element."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def gelu(x: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return GELU, x · Φ(x), with the exact normal distribution Φ (Hendrycks and Gimpel 2016)."""
    return F.gelu(x)


def gelu_tanh(x: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return the tanh approximation of GELU (same paper), as in GPT-2."""
    return F.gelu(x, approximate="tanh")


def relu(x: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return max(x, 0)."""
    return F.relu(x)


def silu(x: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return SiLU, x · sigmoid(x), also called Swish (Ramachandran et al. 2017)."""
    return F.silu(x)


def relu_squared(x: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return max(x, 0)² (So et al. 2021, Primer)."""
    positive = F.relu(x)
    return positive * positive  # on CUDA, square() returns float32 under autocast
