"""The feed-forward sublayer, which maps each position to a wider layer and back."""

import math
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from llm.nn.activations import gelu_tanh, silu

Activation = Callable[[Tensor], Tensor]


class FeedForward(nn.Module):
    """output(activation(input(x))) (Vaswani et al. 2017, equation 2).

    Args:
        dim: width C of the model.
        hidden_dim: width of the hidden layer; None means 4 · dim, as in the paper.
        activation: the nonlinearity between the projections.
        bias: whether the projections have biases.
        dropout: probability for the output.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden_dim: int | None = None,
        activation: Activation = gelu_tanh,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden_dim = hidden_dim or 4 * dim
        self.input = nn.Linear(dim, hidden_dim, bias=bias)
        self.activation = activation
        self.output = nn.Linear(hidden_dim, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Return the layer's output for each position of `x`."""
        # (…, C) -> (…, hidden_dim) -> (…, C)
        return self.dropout(self.output(self.activation(self.input(x))))


class GatedFeedForward(nn.Module):
    """output(activation(gate(x)) · input(x)): SwiGLU with SiLU, GEGLU with GELU (Shazeer 2020).

    Args:
        dim: width C of the model.
        hidden_dim: width of the hidden layer; None means 8/3 · dim, rounded up to `multiple_of`.
        multiple_of: matrix products are faster for multiples of 32 or 64.
        activation: the nonlinearity of the gate.
        bias: whether the projections have biases.
        dropout: probability for the output.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden_dim: int | None = None,
        multiple_of: int = 32,
        activation: Activation = silu,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        # Three matrices of C x 8C/3 have 8C² parameters, as many as the two of C x 4C without a gate.
        hidden_dim = hidden_dim or math.ceil(8 * dim / 3 / multiple_of) * multiple_of
        self.gate = nn.Linear(dim, hidden_dim, bias=bias)
        self.input = nn.Linear(dim, hidden_dim, bias=bias)
        self.activation = activation
        self.output = nn.Linear(hidden_dim, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Return the layer's output for each position of `x`."""
        # The gate, a function of x, decides how much of each hidden unit passes.
        return self.dropout(self.output(self.activation(self.gate(x)) * self.input(x)))


def no_feed_forward(dim: int) -> None:
    """Leave the feed-forward layer out of a kind of layers, where None stands for the layer of the model.

    Args:
        dim: width C of the model.
    """
