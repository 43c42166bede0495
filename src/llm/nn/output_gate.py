"""A gate on the output of attention (Qiu et al. 2025, "Gated attention for large language models")."""

from jaxtyping import Float
from torch import Tensor, nn


class SigmoidGate(nn.Module):
    """heads · sigmoid(projection(x)): each position decides how much of each column of its heads passes.

    The weighted mean of the values and the output projection are both linear; the gate is a nonlinearity between
    them. And a head that finds nothing of use can be closed: without a gate its weights still sum to 1, and models
    learn to spend them on the first token. Qwen3-Next has this gate in its attention layers.

    Args:
        dim: width C of the model.
        width: columns of all heads, H · D.
        bias: whether the projection has a bias.
    """

    def __init__(self, dim: int, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, width, bias=bias)

    def forward(
        self, heads: Float[Tensor, "B T width"], *, x: Float[Tensor, "B T C"]
    ) -> Float[Tensor, "B T width"]:
        """Return the gated output of the heads.

        Args:
            heads: output of all heads, before the output projection.
            x: the input of the attention layer.
        """
        return heads * self.projection(x).sigmoid()
