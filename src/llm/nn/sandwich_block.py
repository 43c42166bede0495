"""A block with a norm before and after each sublayer."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from llm.nn.block import Block


class SandwichBlock(Block):
    """Sublayers between two norms: with `pre_norm`, x + norm(sublayer(norm(x))) (Ding et al. 2021, CogView, 2.4).

    The second norm bounds what a sublayer adds to the stream. Gemma 2 and 3 have it.

    `shared` are the arguments of `Block`; `norm` is called four times.

    Raises:
        ValueError: there is no feed-forward layer.
    """

    def __init__(self, dim: int, **shared: Any) -> None:
        super().__init__(dim, **shared)
        self._require_feed_forward()
        self.attention_output_norm = shared["norm"](dim)
        self.feed_forward_output_norm = shared["norm"](dim)

    def _attend(self, x: Float[Tensor, "B T C"], **inputs: Any) -> Float[Tensor, "B T C"]:
        return self.attention_output_norm(super()._attend(x, **inputs))

    def _feed_forward(self, x: Float[Tensor, "B T C"], **inputs: Any) -> Float[Tensor, "B T C"]:
        return self.feed_forward_output_norm(super()._feed_forward(x, **inputs))
