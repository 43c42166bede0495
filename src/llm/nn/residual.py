"""Addition of a sublayer to the residual stream, with the norm before it, after it, or after the addition; or none."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

Function = Callable[[Tensor], Tensor]
Residual = Callable[[Tensor, Function, Function], Tensor]


def pre_norm(
    x: Float[Tensor, "B T C"], sublayer: Function, norm: Function
) -> Float[Tensor, "B T C"]:
    """Return x + sublayer(norm(x)) (Xiong et al. 2020)."""
    # The sum passes the gradient to every layer unchanged, so deep stacks can train without warm-up.
    return x + sublayer(norm(x))


def post_norm(
    x: Float[Tensor, "B T C"], sublayer: Function, norm: Function
) -> Float[Tensor, "B T C"]:
    """Return norm(x + sublayer(x)), as in the first Transformer (Vaswani et al. 2017)."""
    # The gradient passes through every norm. At initialization it is largest near the output, so the learning
    # rate needs a warm-up (Xiong et al. 2020, section 3).
    return norm(x + sublayer(x))


def reordered_norm(
    x: Float[Tensor, "B T C"], sublayer: Function, norm: Function
) -> Float[Tensor, "B T C"]:
    """Return x + norm(sublayer(x)) (Liu et al. 2022, Swin V2; OLMo Team 2024, OLMo 2)."""
    # The stream stays a sum, as with `pre_norm`, and no sublayer can add more to it than its norm's scale allows.
    return x + norm(sublayer(x))


def no_residual(
    x: Float[Tensor, "B T C"], sublayer: Function, norm: Function
) -> Float[Tensor, "B T C"]:
    """Return sublayer(norm(x)): layers replace the stream, as in stacked LSTMs (Zaremba et al. 2014)."""
    return sublayer(norm(x))
