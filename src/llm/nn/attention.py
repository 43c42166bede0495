"""Multi-head attention (Vaswani et al. 2017), with grouped keys and values (Ainslie et al. 2023).

`naive_attention` is the definition, line by line; `fused_attention` computes the same with one
fused kernel. Tests hold the two equal, so read the first and run the second.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llm.nn.heads import group_size, head_width
from llm.nn.kv_cache import LayerCache
from llm.nn.positions import Rotation, rotate

Kernel = Callable[..., Tensor]


def naive_attention(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B K S D"],
    value: Float[Tensor, "B K S D"],
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T D"]:
    """Attention as it is defined: scores, mask, softmax, weighted sum.

    Args:
        query: what each of the last T positions looks for.
        key: what each of S positions offers; each of K heads serves H / K query heads in turn.
        value: what each of S positions hands over.
        mask: broadcastable to (B, H, T, S). Boolean: True where a query may see a key.
            Floating: added to the scores.
        causal: query t sees the keys up to S - T + t: the queries are the last T of S positions.
        dropout: probability with which a weight is set to zero.
    """
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = (each.repeat_interleave(group, dim=1) for each in (key, value))

    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)
    if causal:
        scores = scores.masked_fill(~_lower_triangle(query, key), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if _is_bool(mask) else scores + mask
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return weights @ value


def fused_attention(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B K S D"],
    value: Float[Tensor, "B K S D"],
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T D"]:
    """The same as `naive_attention`, in one kernel that never stores the (T, S) scores.

    See Dao et al. 2022, FlashAttention. Where nothing but causality is asked, no mask is built.
    """
    if _kernel_is_slow(query):
        return naive_attention(query, key, value, mask, causal, dropout)
    num_queries, num_keys = query.shape[2], key.shape[2]
    if mask is not None and not _is_bool(mask):
        mask = mask.to(query.dtype)
    # The kernel counts causality from the first key, so it is right by itself only where queries
    # and keys are as many; and one query alone, the newest, sees everything.
    kernel_is_causal = causal and mask is None and num_queries == num_keys
    if causal and not kernel_is_causal and num_queries > 1:
        mask = _and(_lower_triangle(query, key), mask)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=kernel_is_causal,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _kernel_is_slow(query: Tensor) -> bool:
    """On a CPU its backward pass in bfloat16 takes four times as long as that of four operations.

    That is so up to some 512 queries; beyond, storing the scores costs more.
    """
    short = query.shape[2] <= 512
    return query.requires_grad and short and query.is_cpu and query.dtype == torch.bfloat16


def _is_bool(mask: Tensor) -> bool:
    return mask.dtype == torch.bool


def _lower_triangle(query: Tensor, key: Tensor) -> Bool[Tensor, "T S"]:
    num_queries, num_keys = query.shape[2], key.shape[2]
    square = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
    return square.tril(num_keys - num_queries)


def _and(allowed: Bool[Tensor, "T S"], mask: Tensor | None) -> Tensor:
    if mask is None:
        return allowed
    return allowed & mask if _is_bool(mask) else mask.masked_fill(~allowed, -math.inf)


class Attention(nn.Module):
    """Self-attention with `num_heads` heads, fewer of them for keys and values where asked.

    `num_kv_heads` equal to `num_heads` is multi-head attention, 1 is multi-query attention
    (Shazeer 2019), anything between is grouped-query attention.

    Args:
        dim: width C of the model.
        num_heads: number H of query heads.
        num_kv_heads: number K of key and value heads, a divisor of H; None means H.
        head_dim: width D of a head; None means `dim / num_heads`.
        bias: whether the output projection has a bias.
        qkv_bias: whether the query, key and value projections have biases.
        dropout: probability for attention weights and for the output.
        qk_norm: from a head's width, makes a norm for queries and one for keys (Henry et al. 2020).
        kernel: what computes attention, `naive_attention` or its equal.

    Raises:
        ValueError: the heads do not divide what they share.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        qk_norm: Callable[[int], nn.Module] | None = None,
        kernel: Kernel = fused_attention,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        group_size(self.num_heads, self.num_kv_heads)
        self.head_dim = head_width(dim, num_heads, head_dim)
        self.kernel = kernel
        self.dropout = nn.Dropout(dropout)

        rows = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.query_key_value = nn.Linear(dim, rows, bias=qkv_bias)
        self.query_norm = qk_norm(self.head_dim) if qk_norm else None
        self.key_norm = qk_norm(self.head_dim) if qk_norm else None
        self.output = nn.Linear(self.num_heads * self.head_dim, dim, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        causal: bool = True,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Lets each position gather from those it may see.

        Args:
            x: the positions' states.
            rotation: cosines and sines that turn queries and keys, from `Position.rotation`.
            mask: what may be seen, as in `naive_attention`; with a cache, S counts all its columns.
            causal: whether a position sees no later one.
            cache: keys and values of earlier positions; those of `x` are appended.
        """
        heads = self.query_key_value(x).unflatten(-1, (-1, self.head_dim))
        counts = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        query, key, value = (part.transpose(1, 2) for part in heads.split(counts, dim=2))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if cache is not None:
            key, value = cache.append(key, value)
            query = query.to(key.dtype)  # a cache may hold less precision than the model works in

        dropout = self.dropout.p if self.training else 0.0
        seen = self.kernel(query, key, value, mask=mask, causal=causal, dropout=dropout)
        return self.dropout(self.output(seen.transpose(1, 2).flatten(2)))

    def new_cache(self, batch_size: int, capacity: int, dtype: torch.dtype | None) -> LayerCache:
        """An empty cache for `capacity` positions, where this layer's parameters are."""
        weight = self.output.weight
        shape = (batch_size, self.num_kv_heads, capacity, self.head_dim)
        return LayerCache.empty(shape, weight.device, dtype or weight.dtype)
