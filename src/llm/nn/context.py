"""What all layers of a forward pass share: positions, padding, documents and the cache."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm.nn.kv_cache import Cache, KeysAndValues, WindowCache
from llm.nn.masking_kernel import MaskingKernel
from llm.nn.masks import (
    Predicate,
    RowLimits,
    SlidingWindow,
    as_bias,
    both,
    causal,
    everything,
    is_same_function,
)
from llm.nn.positions import Position, Positions

# Texts longer than so many windows are computed in blocks; for shorter ones a shared mask is as fast. Measured in
# experiments/local_attention.
BLOCKS_FROM = 2


@dataclass(frozen=True, kw_only=True)
class Context:
    """The inputs of a forward pass besides the states.

    Attributes:
        position: the position encoding of layers without one of their own.
        mask: the mask of layers without one of their own.
        positions: positions of the T new tokens in their texts.
        start: number of earlier tokens in the cache.
        cache: what the layers keep of earlier tokens; already describes the new ones.
        document_ids: document of each token; attention stays within a document.
        attention_mask: True for real tokens, False for padding.
    """

    position: Position
    mask: Predicate
    positions: Positions
    start: int = 0
    cache: Cache | None = None
    document_ids: Int[Tensor, "B T"] | None = None
    attention_mask: Bool[Tensor, "B T"] | None = None

    def attention_inputs(
        self,
        x: Float[Tensor, "B T C"],
        *,
        position: Position | None,
        mask: Predicate | None,
        cache: KeysAndValues | None,
        kernel: Callable[..., Tensor],
        width: int | None = None,
    ) -> dict[str, Any]:
        """Return `rotation`, `mask`, `causal` and `window` of an `Attention` layer.

        They depend on positions only, so all layers with the same position and mask share them.

        Args:
            x: states of the new tokens; only their dtype, device and length matter.
            position: the layer's own position encoding; None takes the shared one.
            mask: the layer's own mask; None takes the shared one.
            cache: the layer's keys and values of earlier tokens.
            kernel: the layer's kernel, which may make the mask.
            width: number of columns to rotate; None leaves it to the position encoding.
        """
        position, mask = position or self.position, mask or self.mask
        # A cache also has the padding of earlier columns.
        real = self.cache.valid if self.cache is not None else self.attention_mask
        limits = RowLimits(real, self.document_ids)
        rotation = position.rotation(x, self.positions, width=width)
        inputs = {"rotation": rotation, "mask": None, "causal": False, "window": None}
        has_bias = type(position).bias is not Position.bias
        # Kernels apply some masks without a tensor of all pairs, and skip the keys that they hide.
        known = None
        if not has_bias:
            known = self._without_tensor(mask, x.shape[1], limits=limits, cache=cache)
        # Kernels make masks of whole texts: after earlier tokens there are more keys than queries.
        maker = kernel if isinstance(kernel, MaskingKernel) and self.start == 0 else None
        if maker is not None and not maker.wants_mask(x, known):
            maker = None
        if known is not None and maker is None:
            return inputs | known
        # Not from the cache: its first layers may have appended the new tokens already.
        start, end = self.start, self.start + x.shape[1]
        columns = torch.arange(start, end, device=x.device)
        keys = columns if cache is None else cache.columns(start, x.shape[1])
        # (T, S) or (B, T, S), with an axis for the heads: (1, T, S) or (B, 1, T, S).
        allowed = both(mask, *limits.predicates)(columns, keys).unsqueeze(-3)
        bias = self._bias(x, position, columns=keys, start=start)
        if maker is not None:
            return inputs | {"mask": maker.make_mask(allowed, bias=bias)}
        return inputs | {"mask": allowed if bias is None else as_bias(allowed, bias)}

    def _without_tensor(
        self, mask: Predicate, new: int, *, limits: RowLimits, cache: KeysAndValues | None
    ) -> dict[str, Any] | None:
        """Return the arguments that replace mask and limits; None if they take a tensor."""
        has_limits = bool(limits.predicates)
        if isinstance(mask, SlidingWindow) and self.start == 0 and new > BLOCKS_FROM * mask.size:
            return {"causal": True, "window": mask.size, "mask": limits if has_limits else None}
        if has_limits:
            return None
        if is_same_function(mask, everything):
            return {"causal": False}
        if is_same_function(mask, causal) or (new == 1 and isinstance(cache, WindowCache)):
            return {"causal": True}  # a ring has the keys of the window only
        return None

    def _bias(
        self, x: Float[Tensor, "B T C"], position: Position, *, columns: Tensor, start: int
    ) -> Tensor | None:
        """Return the position's bias for the scores of the new tokens with the keys in some columns."""
        queries, keys = self.positions, self.positions
        if self.cache is not None and isinstance(queries, slice):
            keys = columns  # without explicit positions, those are the columns
        elif self.cache is not None:
            queries = self.cache.positions[:, start : start + x.shape[1]]
            keys = self.cache.positions[:, columns]
        return position.bias(x, query_positions=queries, key_positions=keys)
