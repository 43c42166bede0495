"""What all layers of a forward pass share: positions, padding, documents and the cache."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm.nn.kv_cache import Cache
from llm.nn.masks import (
    Predicate,
    as_bias,
    both,
    causal,
    everything,
    is_same_function,
    not_padding,
    same_document,
)
from llm.nn.positions import Position, Positions


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
        self, x: Float[Tensor, "B T C"], *, position: Position | None, mask: Predicate | None
    ) -> dict[str, Any]:
        """Return `rotation`, `mask` and `causal` of an `Attention` layer.

        They depend on positions only, so all layers with the same position and mask share them.

        Args:
            x: states of the new tokens; only their dtype, device and length matter.
            position: the layer's own position encoding; None takes the shared one.
            mask: the layer's own mask; None takes the shared one.
        """
        position, mask = position or self.position, mask or self.mask
        rotation = position.rotation(x, self.positions)
        allowed = self._allowed(x, position=position, mask=mask)
        is_causal = allowed is None and is_same_function(mask, causal)
        return {"rotation": rotation, "mask": allowed, "causal": is_causal}

    def _allowed(
        self, x: Float[Tensor, "B T C"], *, position: Position, mask: Predicate
    ) -> Tensor | None:
        """Return one mask for padding, documents and bias; None if the kernel needs no tensor."""
        # Not from the cache: its first layers may have appended the new tokens already.
        start, end = self.start, self.start + x.shape[1]
        # A cache also has the padding of earlier columns.
        real = self.cache.valid if self.cache is not None else self.attention_mask

        limits = [mask]
        if real is not None:
            limits.append(not_padding(real))
        if self.document_ids is not None:
            limits.append(same_document(self.document_ids))
        queries, keys = self._query_and_key_positions(start, end)
        bias = position.bias(x, query_positions=queries, key_positions=keys)
        # Kernels apply a causal mask without a tensor, and then skip the keys after each query.
        needs_tensor = not (is_same_function(mask, causal) or is_same_function(mask, everything))
        if not needs_tensor and len(limits) == 1 and bias is None:
            return None
        columns = torch.arange(end, device=x.device)
        # (T, S) or (B, T, S), with an axis for the heads: (1, T, S) or (B, 1, T, S).
        allowed = both(*limits)(columns[start:], columns).unsqueeze(-3)
        return allowed if bias is None else as_bias(allowed, bias)

    def _query_and_key_positions(
        self, start: int, end: int
    ) -> tuple[slice | Tensor, slice | Tensor]:
        """Return the positions of the new tokens and of all keys."""
        if self.cache is None:
            return self.positions, self.positions
        if isinstance(self.positions, slice):
            return self.positions, slice(0, end)
        return self.cache.positions[:, start:end], self.cache.positions[:, :end]
