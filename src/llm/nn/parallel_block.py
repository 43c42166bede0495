"""A block whose two sublayers read the same input."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from llm.nn.block import Block
from llm.nn.residual import pre_norm


class ParallelBlock(Block):
    """x + attention(norm(x)) + feed_forward(norm(x)), each with its own norm (GPT-NeoX, Black et al. 2022, 2.1.2).

    The feed-forward layer does not see what this block's attention has found, only that of earlier blocks. The two
    sublayers do not wait for each other. PaLM trained 15 % faster with it, and lost no quality at 62 billion parameters
    (Chowdhery et al. 2022, section 2).

    `shared` are the arguments of `Block`.

    Raises:
        ValueError: `residual` is not `pre_norm`, or there is no feed-forward layer.
    """

    def __init__(self, dim: int, **shared: Any) -> None:
        super().__init__(dim, **shared)
        self._require_feed_forward()
        if getattr(self.residual, "func", self.residual) is not pre_norm:
            raise ValueError(
                "residual: a parallel block adds both sublayers to its input, so their norms come first; use pre_norm"
            )

    def _sublayers(
        self,
        x: Float[Tensor, "B T C"],
        *,
        feed_forward_inputs: dict[str, Any] | None = None,
        **inputs: Any,
    ) -> Float[Tensor, "B T C"]:
        attended = self.attention(self.attention_norm(x), **inputs)
        fed_forward = self.feed_forward(self.feed_forward_norm(x), **(feed_forward_inputs or {}))
        return x + attended + fed_forward
