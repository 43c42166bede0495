"""The repeated unit of a Transformer."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm.nn.context import Context
from llm.nn.layer_state import LayerState
from llm.nn.masks import Predicate
from llm.nn.positions import Position
from llm.nn.residual import Residual
from llm.nn.token_mixer import Link, PlacedMixer, TokenMixer


class Block(nn.Module):
    """Attention, which mixes positions, and a feed-forward layer, which acts on each position.

    Args:
        dim: width C of the model.
        attention: makes the attention layer for a width, or a recurrence in its place.
        feed_forward: makes the feed-forward layer for a width, or returns None; None leaves it out.
        norm: makes a norm for a width, one for each sublayer.
        residual: adds a sublayer to the residual stream, such as `pre_norm`.
        position: position encoding of this block's attention; None takes the model's.
        mask: mask of this block's attention; None takes the model's.
    """

    def __init__(
        self,
        dim: int,
        *,
        attention: Callable[[int], TokenMixer],
        feed_forward: Callable[[int], nn.Module | None] | None,
        norm: Callable[[int], nn.Module],
        residual: Residual,
        position: Position | None = None,
        mask: Predicate | None = None,
    ) -> None:
        super().__init__()
        self.attention_norm = norm(dim)
        self.attention = attention(dim)
        made = feed_forward(dim) if feed_forward is not None else None
        self.feed_forward_norm: Any = norm(dim) if made is not None else None
        self.feed_forward: Any = made
        self.residual = residual
        self.position = position
        self.mask = mask

    def prepare(
        self, x: Float[Tensor, "B T C"], context: Context, *, cache: LayerState | None
    ) -> dict[str, Any]:
        """Return the arguments of `forward` that blocks of one kind share."""
        own = {"position": self.position, "mask": self.mask}
        inputs = self.attention.prepare(x, context, cache=cache, **own)
        # Most feed-forward layers need nothing besides the states.
        if hasattr(self.feed_forward, "prepare"):
            inputs["feed_forward_inputs"] = self.feed_forward.prepare(context)
        return inputs

    def connect(self, earlier: Sequence["Block"]) -> Link | None:
        """Return what this block's attention reads of an earlier block, see `TokenMixer.connect`."""
        own, *others = (
            PlacedMixer(mixer=block.attention, position=block.position, mask=block.mask)
            for block in (self, *earlier)
        )
        return self.attention.connect(own, others)

    def forward(
        self, x: Float[Tensor, "B T C"], *, offers: Sequence[str] = (), **inputs: Any
    ) -> Float[Tensor, "B T C"] | tuple[Float[Tensor, "B T C"], dict[str, Any]]:
        """Return the stream after the sublayers.

        Args:
            x: the stream.
            offers: names of what later layers read of this block's attention. If there are any, the result is a pair of
                the stream and a dictionary of them.
            inputs: the arguments of the sublayers' own `forward`.
        """
        if not offers:
            return self._sublayers(x, **inputs)
        offered: dict[str, Any] = {}
        x = self._sublayers(x, offered=offered, **inputs)
        return x, {name: offered[name] for name in offers}

    def _sublayers(
        self,
        x: Float[Tensor, "B T C"],
        *,
        feed_forward_inputs: dict[str, Any] | None = None,
        **inputs: Any,
    ) -> Float[Tensor, "B T C"]:
        """Return the stream after the sublayers; a subclass may arrange them differently."""
        # `residual` applies the norm, so it takes the sublayer as a function of the stream alone.
        x = self.residual(x, partial(self._attend, **inputs), self.attention_norm)
        if self.feed_forward is None:
            return x
        feed = partial(self._feed_forward, **(feed_forward_inputs or {}))
        return self.residual(x, feed, self.feed_forward_norm)

    def _attend(self, x: Float[Tensor, "B T C"], **inputs: Any) -> Float[Tensor, "B T C"]:
        """Return what attention adds to the stream; a subclass may change it."""
        return self.attention(x, **inputs)

    def _feed_forward(self, x: Float[Tensor, "B T C"], **inputs: Any) -> Float[Tensor, "B T C"]:
        """Return what the feed-forward layer adds to the stream; a subclass may change it."""
        return self.feed_forward(x, **inputs)

    def _require_feed_forward(self) -> None:
        """Raise a ValueError if a block that needs a feed-forward layer has none."""
        if self.feed_forward is None:
            raise ValueError(
                f"feed_forward: {type(self).__name__} arranges two sublayers; choose a feed-forward layer, or "
                "model/residual=pre_norm"
            )

    def new_cache(
        self, batch_size: int, capacity: int, *, dtype: torch.dtype | None, mask: Predicate
    ) -> LayerState:
        """Return the state before the first token; `mask` is the model's, see `TokenMixer.new_cache`."""
        return self.attention.new_cache(batch_size, capacity, dtype=dtype, mask=self.mask or mask)
