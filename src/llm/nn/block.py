"""The repeated unit of a Transformer: attention across positions, then each position by itself."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from llm.nn.attention import Attention
from llm.nn.kv_cache import LayerCache
from llm.nn.positions import Rotation
from llm.nn.residual import Residual


class Block(nn.Module):
    """Attention and a feed-forward layer, each joined to the stream by `residual`.

    Args:
        dim: width C of the model.
        attention: from the width, makes the attention.
        feed_forward: from the width, makes the feed-forward layer.
        norm: from the width, makes a norm; called twice.
        residual: `pre_norm` or `post_norm`, or another way to join.
    """

    def __init__(
        self,
        dim: int,
        attention: Callable[[int], Attention],
        feed_forward: Callable[[int], nn.Module],
        norm: Callable[[int], nn.Module],
        residual: Residual,
    ) -> None:
        super().__init__()
        self.attention_norm = norm(dim)
        self.attention = attention(dim)
        self.feed_forward_norm = norm(dim)
        self.feed_forward = feed_forward(dim)
        self.residual = residual

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        causal: bool = True,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "B T C"]:
        """The next state of the stream; the arguments are those of `Attention.forward`."""

        def attention(x: Tensor) -> Tensor:
            return self.attention(x, rotation, mask, causal, cache)

        x = self.residual(x, attention, self.attention_norm)
        return self.residual(x, self.feed_forward, self.feed_forward_norm)
