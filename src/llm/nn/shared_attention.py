"""Attention to the keys and values of an earlier layer (cross-layer attention, Brandon et al. 2024).

Neighbouring layers have similar keys and values. A layer that has none of its own saves their projections and its whole
cache. In YOCO (Sun et al. 2024) all layers of the upper half share those of one layer. In Gemma 3n the last layers
share those of the last two before them: one with a window, one with full attention.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm.nn.attention import KEYS_AND_VALUES, Attention, HeadMixer, Kernel, fused_attention
from llm.nn.heads import group_size, head_width, score_width
from llm.nn.kv_cache import KeysAndValues, new_kv_cache
from llm.nn.masking_kernel import Mask, fitting
from llm.nn.masks import Predicate, is_same_mask
from llm.nn.positions import Rotation, is_same_position, rotate
from llm.nn.qk_norm import each_head
from llm.nn.token_mixer import Link, PlacedMixer


class SharedKVAttention(HeadMixer):
    """Attention with queries of its own, to the keys and values of the closest earlier `Attention` that fits.

    That layer has the same mask and the same position, so its cache contains what this layer attends to, rotated as
    the queries are. It also decides on the number of key and value heads.

    Args:
        dim: width C of the model.
        num_heads: number H of query heads.
        head_dim: width D of a head, that of the earlier layer; None means `dim / num_heads`.
        score_dim: the scores are divided by its square root; None means D.
        bias: whether the output projection has a bias.
        query_bias: whether the query projection has a bias.
        dropout: probability for attention weights and for the output.
        qk_norm: makes a norm of the queries for a width; the keys have that of their own layer.
        qk_norm_over: the columns that it normalizes, see `Attention`; None means those of each head.
        output_gate: makes a gate on the output of the heads for the widths C and H · D, such as `SigmoidGate`.
        sinks: makes a further score in each head's softmax for a number of heads, such as `Sinks`.
        kernel: the function that computes attention: `naive_attention` or an equivalent.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        score_dim: int | None = None,
        bias: bool = True,
        query_bias: bool = True,
        dropout: float = 0.0,
        qk_norm: Callable[[int], nn.Module] | None = None,
        qk_norm_over: Callable[..., nn.Module] | None = None,
        output_gate: Callable[..., nn.Module] | None = None,
        sinks: Callable[[int], nn.Module] | None = None,
        kernel: Kernel = fused_attention,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_width(dim, num_heads, head_dim=head_dim)
        self.score_dim = score_width(score_dim, head_dim=self.head_dim)
        self.kernel = fitting(
            kernel, width=self.head_dim, dropout=dropout, has_sinks=sinks is not None
        )
        self.dropout = nn.Dropout(dropout)

        width = self.num_heads * self.head_dim
        self.query = nn.Linear(dim, width, bias=query_bias)
        over = qk_norm_over or each_head
        self.query_norm = (
            over(qk_norm, num_heads=num_heads, head_dim=self.head_dim) if qk_norm else None
        )
        self.sinks = sinks(num_heads) if sinks else None
        self.output_gate = output_gate(dim, width, bias=bias) if output_gate else None
        self.output = nn.Linear(width, dim, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        *,
        source: tuple[Float[Tensor, "B K S D"], Float[Tensor, "B K S D"]],
        rotation: Rotation | None = None,
        mask: Mask = None,
        causal: bool = True,
        window: int | None = None,
        cache: KeysAndValues | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Return the output projection of the attention heads.

        Args:
            x: states of T positions.
            source: keys and values of the earlier layer: those of `x`, and before them those in its cache.
            rotation: as in `Attention.forward`; it rotates the queries only.
            mask: as in `Attention.forward`; S counts the columns of the keys.
            causal: whether a position attends to no later one.
            window: number of keys that a causal query attends to, its own included; None means all.
            cache: a cache without heads, which counts the positions.
        """
        key, value = source
        # (B, T, C) -> (B, T, H, D) -> (B, H, T, D)
        query = self.query(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if self.query_norm is not None:
            query = self.query_norm(query)
        if rotation is not None:
            query = rotate(query, rotation)
        if cache is not None:
            new = key.new_empty(x.shape[0], 0, x.shape[1], self.head_dim)
            cache.append(new, new)
            query = query.to(key.dtype)
        return self._mixed(query, key, value, x=x, mask=mask, causal=causal, window=window)

    def connect(self, own: PlacedMixer, earlier: Sequence[PlacedMixer]) -> Link:
        """Return the closest earlier layer with keys and values, the same mask and the same position."""
        for number, other in reversed([*enumerate(earlier)]):
            if (
                KEYS_AND_VALUES in other.mixer.offers
                and is_same_mask(other.mask, own.mask)
                and is_same_position(other.position, own.position)
            ):
                self._require_fitting(cast(Attention, other.mixer), number)
                return Link(number, KEYS_AND_VALUES)
        if earlier and not any(KEYS_AND_VALUES in other.mixer.offers for other in earlier):
            names = sorted({type(other.mixer).__name__ for other in earlier})
            raise ValueError(
                f"earlier layers have no keys and values to share ({', '.join(names)}); use "
                "model/attention=multi_head"
            )
        raise ValueError(
            "no earlier layer has keys and values of its own with this layer's mask and position; put a kind that has "
            "them before it, such as model.pattern=[own,shared]"
        )

    def new_cache(
        self, batch_size: int, capacity: int, *, dtype: torch.dtype | None, mask: Predicate
    ) -> KeysAndValues:
        """Return a cache with the columns of the earlier layer's, but without heads: 0 bytes."""
        weight = self.output.weight
        shape = (batch_size, 0, capacity, self.head_dim)
        return new_kv_cache(shape, mask=mask, device=weight.device, dtype=dtype or weight.dtype)

    def _require_fitting(self, source: Attention, number: int) -> None:
        if source.head_dim != self.head_dim:
            raise ValueError(
                f"head_dim={self.head_dim} is not that of the keys of layer {number + 1}, {source.head_dim}; give "
                "both layers the same head_dim"
            )
        group_size(self.num_heads, source.num_kv_heads)
