"""How a sublayer joins the residual stream: where the norm stands."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

Function = Callable[[Tensor], Tensor]
Residual = Callable[[Tensor, Function, Function], Tensor]


def pre_norm(
    x: Float[Tensor, "B T C"], sublayer: Function, norm: Function
) -> Float[Tensor, "B T C"]:
    """Norm first, x + sublayer(norm(x)): the stream itself stays as it is (Xiong et al. 2020)."""
    return x + sublayer(norm(x))


def post_norm(
    x: Float[Tensor, "B T C"], sublayer: Function, norm: Function
) -> Float[Tensor, "B T C"]:
    """Norm last, norm(x + sublayer(x)): the first Transformer's; needs warm-up (Vaswani et al. 2017)."""
    return norm(x + sublayer(x))
