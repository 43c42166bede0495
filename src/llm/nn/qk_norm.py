"""Norms of queries and keys, which bound the attention scores: of each head, or of all heads together.

Without them scores can grow during training until the softmax is one-hot and the loss diverges (Henry et al. 2020;
Dehghani et al. 2023, section 2). Qwen3 and Gemma 3 normalize each head, OLMo 2 and 3 all heads together.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn


def each_head(norm: Callable[[int], nn.Module], *, num_heads: int, head_dim: int) -> nn.Module:
    """Return a norm over the D columns of a head; all heads share its scale."""
    return norm(head_dim)


def all_heads(norm: Callable[[int], nn.Module], *, num_heads: int, head_dim: int) -> nn.Module:
    """Return a norm over the H · D columns of all heads; each column has its own scale."""
    return AcrossHeads(norm(num_heads * head_dim))


class AcrossHeads(nn.Module):
    """A norm of all heads together (OLMo 2, OLMo Team 2024).

    Heads keep their relative sizes: one that is twice as large as another is so afterwards.

    Args:
        norm: a norm of H · D columns.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Float[Tensor, "B H T D"]) -> Float[Tensor, "B H T D"]:
        """Return the normalized queries or keys."""
        # (B, H, T, D) -> (B, T, H, D) -> (B, T, H · D): the columns that the norm averages are adjacent.
        columns = self.norm(x.transpose(1, 2).flatten(2))
        # (B, T, H · D) -> (B, T, H, D) -> (B, H, T, D)
        return columns.unflatten(2, (-1, x.shape[-1])).transpose(1, 2)
