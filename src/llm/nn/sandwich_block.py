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

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        *,
        feed_forward_inputs: dict[str, Any] | None = None,
        **inputs: Any,
    ) -> Float[Tensor, "B T C"]:
        """Return the stream after both sublayers; the arguments are those of their own `forward`."""

        def attention(x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
            return self.attention_output_norm(self.attention(x, **inputs))

        def feed_forward(x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
            return self.feed_forward_output_norm(
                self.feed_forward(x, **(feed_forward_inputs or {}))
            )

        x = self.residual(x, attention, self.attention_norm)
        return self.residual(x, feed_forward, self.feed_forward_norm)
