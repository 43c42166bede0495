"""Multi-head attention (Vaswani et al. 2017), with grouped keys and values (Ainslie et al. 2023).

`naive_attention` is the definition, line by line; `fused_attention` computes the same in one kernel.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llm.nn.context import Context
from llm.nn.heads import group_size, head_width, score_width
from llm.nn.kv_cache import KeysAndValues, new_kv_cache
from llm.nn.layer_state import LayerState
from llm.nn.local_attention import local_attention
from llm.nn.masking_kernel import Mask, fitting
from llm.nn.masks import Predicate, RowLimits
from llm.nn.positions import Position, Rotation, rotate
from llm.nn.qk_norm import each_head
from llm.nn.token_mixer import Link, PlacedMixer, TokenMixer

Kernel = Callable[..., Tensor]
# What later layers can read of an attention layer.
KEYS_AND_VALUES = "keys_and_values"  # all that its queries may attend to, rotated
VALUES = "values"  # of the new tokens


def naive_attention(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B K S D"],
    value: Float[Tensor, "B K S D"],
    *,
    mask: Tensor | RowLimits | None = None,
    causal: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> Float[Tensor, "B H T D"]:
    """Return softmax(query · keyᵀ / √D + mask) · value, written out step by step.

    Args:
        query: queries of the last T of S positions.
        key: keys of all S positions; each of the K heads serves H / K consecutive query heads.
        value: values of all S positions.
        mask: broadcastable to (B, H, T, S). Boolean: True where a query may attend to a key.
            Floating: added to the scores. `RowLimits` describe a boolean mask of all T = S positions.
        causal: whether query t attends only to keys up to its own position, S - T + t.
        window: number of keys that a causal query attends to, its own included; None means all.
        dropout: probability of setting an attention weight to zero.
        softcap: bound c of the scores, which become c · tanh(score / c) (Gemma Team 2024, Gemma 2, section 2).
    """
    # Grouped-query attention: (B, K, S, D) -> (B, H, S, D), each key head repeated for its group.
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = (each.repeat_interleave(group, dim=1) for each in (key, value))

    # (B, H, T, D) @ (B, H, D, S) -> (B, H, T, S). If the entries of query and key have variance 1,
    # a dot product of D of them has variance D. Without the division by √D the softmax would be
    # nearly one-hot, and its gradient nearly 0 (Vaswani et al. 2017, section 3.2.1).
    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)
    if softcap is not None:  # before the mask: tanh would make -inf a finite score
        scores = softcap * torch.tanh(scores / softcap)
    if causal:  # exp(-inf) = 0, so a masked key gets no weight and the others still sum to 1
        scores = scores.masked_fill(~window_mask(query, key, window=window), -math.inf)
    if isinstance(mask, RowLimits):
        mask = mask.dense(query)
    if mask is not None:
        is_bool = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -math.inf) if is_bool else scores + mask
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    # (B, H, T, S) @ (B, H, S, D) -> (B, H, T, D): a mean of the values, weighted by the scores.
    return weights @ value


def fused_attention(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B K S D"],
    value: Float[Tensor, "B K S D"],
    *,
    mask: Tensor | RowLimits | None = None,
    causal: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> Float[Tensor, "B H T D"]:
    """Compute the same as `naive_attention` in one kernel, which never stores the (T, S) scores (Dao et al. 2022)."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    if not isinstance(mask, Tensor):
        if window is not None and num_queries == num_keys > window:
            kernel = partial(fused_attention, softcap=softcap, dropout=dropout)
            return local_attention(query, key, value, window=window, limits=mask, kernel=kernel)
        mask = mask and mask.dense(query)
    if softcap is not None or _kernel_is_slow(query):  # torch's kernel cannot bound the scores
        return naive_attention(
            *(query, key, value),
            mask=mask,
            causal=causal,
            window=window,
            dropout=dropout,
            softcap=softcap,
        )
    if mask is not None and mask.dtype != torch.bool:
        # Under autocast a bias is float32 and the queries are not; the kernel needs one dtype.
        mask = mask.to(query.dtype)
    # The kernel's causal mask puts the first query at the first key, which is wrong after cached keys
    # (T < S). A single query is the newest position, so it attends to every key.
    kernel_is_causal = causal and mask is None and num_queries == num_keys and window is None
    if causal and not kernel_is_causal and (num_queries > 1 or window is not None):
        mask = _and(window_mask(query, key, window=window), mask)
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
    """Return whether the fused kernel trains more slowly than the separate operations.

    On a CPU in bfloat16 its backward pass takes four times as long. Above about 512 queries, storing the
    scores costs more than that.
    """
    short = query.shape[2] <= 512
    return query.requires_grad and short and query.is_cpu and query.dtype == torch.bfloat16


def window_mask(query: Tensor, key: Tensor, *, window: int | None) -> Bool[Tensor, "T S"]:
    """Return which of the last S keys each of the last T queries attends to: the last `window` up to its own."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    square = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
    # The diagonal is shifted by the S - T cached keys: row t is True up to column S - T + t.
    diagonal = num_keys - num_queries
    allowed = square.tril(diagonal)
    return allowed if window is None else allowed.triu(diagonal - window + 1)


def _and(allowed: Bool[Tensor, "T S"], mask: Tensor | None) -> Tensor:
    if mask is None:
        return allowed
    return allowed & mask if mask.dtype == torch.bool else mask.masked_fill(~allowed, -math.inf)


class HeadMixer(TokenMixer):
    """What attention layers have in common, once there are queries, keys and values.

    Attributes:
        kernel: the function that computes attention.
        head_dim: width D of a head.
        score_dim: number whose square root divides the scores.
        dropout: the dropout of attention weights and of the output.
        sinks: adds a score to each head's softmax; None for none.
        output_gate: a gate on the output of the heads; None for none.
        output: the projection of the heads to the width C.
    """

    kernel: Kernel
    head_dim: int
    score_dim: int
    dropout: nn.Dropout
    sinks: nn.Module | None
    output_gate: nn.Module | None
    output: nn.Linear

    def _mixed(
        self,
        query: Float[Tensor, "B H T D"],
        key: Float[Tensor, "B K S D"],
        value: Float[Tensor, "B K S D"],
        *,
        x: Float[Tensor, "B T C"],
        mask: Mask,
        causal: bool,
        window: int | None,
    ) -> Float[Tensor, "B T C"]:
        """Return the output projection of the heads; `x` is the input of the layer."""
        # After the cache, which does not contain the column of the sinks.
        attend = self.kernel
        if self.sinks is not None:
            attend = partial(self.sinks, kernel=self.kernel)
        dropout = self.dropout.p if self.training else 0.0
        if self.score_dim != self.head_dim:  # the kernel divides by √D
            query = query * math.sqrt(self.head_dim / self.score_dim)
        heads = attend(query, key, value, mask=mask, causal=causal, window=window, dropout=dropout)
        # (B, H, T, D) -> (B, T, H, D) -> (B, T, H · D)
        heads = heads.transpose(1, 2).flatten(2)
        if self.output_gate is not None:
            heads = self.output_gate(heads, x=x)
        # (B, T, H · D) -> (B, T, C): the output mixes the heads.
        return self.dropout(self.output(heads))

    def prepare(
        self,
        x: Float[Tensor, "B T C"],
        context: Context,
        *,
        position: Position | None,
        mask: Predicate | None,
        cache: LayerState | None,
    ) -> dict[str, Any]:
        """Return rotation and mask, see `TokenMixer.prepare`."""
        stored = cast(KeysAndValues | None, cache)
        return context.attention_inputs(
            x, position=position, mask=mask, cache=stored, kernel=self.kernel
        )

    def mixing_flops(self, keys: int) -> int:
        """Return the operations of training for one query with so many keys: 12 for each column of the heads.

        Scores and weighted values are a product each, of a multiplication and an addition; the backward pass takes
        twice as many.
        """
        # From the shape: a sharded parameter has its full shape, while num_heads counts this device's heads.
        return 12 * self.output.weight.shape[1] * keys


class Attention(HeadMixer):
    """Self-attention with H query heads and K key and value heads.

    K = H is multi-head attention, K = 1 multi-query attention (Shazeer 2019), and 1 < K < H grouped-query
    attention. The cache is H / K times smaller than for K = H.

    Args:
        dim: width C of the model.
        num_heads: number H of query heads.
        num_kv_heads: number K of key and value heads, a divisor of H; None means H.
        head_dim: width D of a head; None means `dim / num_heads`.
        score_dim: the scores are divided by its square root; None means D. Gemma 3 with 27 billion parameters has 168
            for heads of 128 columns.
        bias: whether the output projection has a bias.
        qkv_bias: whether the query, key and value projections have biases.
        dropout: probability for attention weights and for the output.
        qk_norm: makes a norm of a given width; one is applied to the queries and one to the keys.
        qk_norm_over: the columns that it normalizes: `each_head` or `all_heads`.
        output_gate: makes a gate on the output of the heads for the widths C and H · D, such as `SigmoidGate`.
        sinks: makes a further score in each head's softmax for a number of heads, such as `Sinks`.
        value_residual: makes a weighted sum of the first layer's values and this layer's own, such as `ValueResidual`.
            The first layer of a stack has none.
        kernel: the function that computes attention: `naive_attention` or an equivalent.

    Raises:
        ValueError: `num_heads` does not divide `dim`, or `num_kv_heads` does not divide `num_heads`.
    """

    offers = (KEYS_AND_VALUES, VALUES)

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        score_dim: int | None = None,
        bias: bool = True,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        qk_norm: Callable[[int], nn.Module] | None = None,
        qk_norm_over: Callable[..., nn.Module] = each_head,
        output_gate: Callable[..., nn.Module] | None = None,
        sinks: Callable[[int], nn.Module] | None = None,
        value_residual: Callable[[], nn.Module] | None = None,
        kernel: Kernel = fused_attention,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        group_size(self.num_heads, self.num_kv_heads)
        self.head_dim = head_width(dim, num_heads, head_dim=head_dim)
        self.score_dim = score_width(score_dim, head_dim=self.head_dim)
        self.kernel = fitting(
            kernel, width=self.head_dim, dropout=dropout, has_sinks=sinks is not None
        )
        self.dropout = nn.Dropout(dropout)

        # One matrix for the three projections, so that one product computes them. Its rows: H query
        # heads, K key heads, K value heads.
        rows = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.query_key_value = nn.Linear(dim, rows, bias=qkv_bias)
        self.query_norm, self.key_norm = (
            qk_norm_over(qk_norm, num_heads=count, head_dim=self.head_dim) if qk_norm else None
            for count in (self.num_heads, self.num_kv_heads)
        )
        self.sinks = sinks(self.num_heads) if sinks else None
        self.value_residual = value_residual() if value_residual else None
        width = self.num_heads * self.head_dim
        self.output_gate = output_gate(dim, width, bias=bias) if output_gate else None
        self.output = nn.Linear(width, dim, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        *,
        rotation: Rotation | None = None,
        mask: Mask = None,
        causal: bool = True,
        window: int | None = None,
        cache: KeysAndValues | None = None,
        source: Float[Tensor, "B K T D"] | None = None,
        offered: dict[str, Any] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Return the output projection of the attention heads.

        Args:
            x: states of T positions.
            rotation: cosines and sines that rotate queries and keys, from `Position.rotation`.
            mask: as in `naive_attention`, or of the kernel; with a cache, S counts all its filled columns.
            causal: whether a position attends to no later one.
            window: number of keys that a causal query attends to, its own included; None means all.
            cache: keys and values of earlier positions; those of `x` are appended.
            source: the first layer's values of these positions, if this layer mixes them with its own.
            offered: filled with what later layers can read, see `offers`.
        """
        # (B, T, C) -> (B, T, H + 2K, D), then one (B, heads, T, D) for each of query, key and value.
        heads = self.query_key_value(x).unflatten(-1, (-1, self.head_dim))
        counts = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        query, key, value = (part.transpose(1, 2) for part in heads.split(counts, dim=2))
        if offered is not None:
            # Copies: a view would keep the whole projection in memory, with the queries, for the later layers.
            key, value = key.contiguous(), value.contiguous()
            offered[VALUES] = value
        if self.value_residual is not None:
            value = self.value_residual(value, first=source)
        # Norm before rotation: the norm scales each column, and a rotation mixes columns.
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        # The cache holds rotated keys, because the position of a key never changes.
        if cache is not None:
            key, value = cache.append(key, value)
            query = query.to(key.dtype)  # a cache may have a lower precision than the model

        if offered is not None:
            offered[KEYS_AND_VALUES] = key, value
        return self._mixed(query, key, value, x=x, mask=mask, causal=causal, window=window)

    @property
    def reads(self) -> tuple[str, ...]:
        """The first layer's values, if this layer mixes them with its own."""
        return () if self.value_residual is None else (VALUES,)

    def connect(self, own: PlacedMixer, earlier: Sequence[PlacedMixer]) -> Link | None:
        """Return the first layer with values, if this layer mixes them with its own."""
        if self.value_residual is None:
            return None
        numbers = (n for n, each in enumerate(earlier) if VALUES in each.mixer.offers)
        first = next(numbers, None)
        if first is None:  # this layer's own values are the first
            self.value_residual = None
            return None
        source = cast(Attention, earlier[first].mixer)
        theirs, ours = ((m.num_kv_heads, m.head_dim) for m in (source, self))
        if theirs != ours:
            raise ValueError(
                f"value_residual adds the values of layer {first + 1}, {theirs[0]} heads of width {theirs[1]}, to "
                f"{ours[0]} heads of width {ours[1]}; give both layers the same num_kv_heads and head_dim"
            )
        return Link(first, VALUES)

    def new_cache(
        self, batch_size: int, capacity: int, *, dtype: torch.dtype | None, mask: Predicate
    ) -> KeysAndValues:
        """Return an empty cache of all tokens, or of those in the window of the mask."""
        weight = self.output.weight
        shape = (batch_size, self.num_kv_heads, capacity, self.head_dim)
        return new_kv_cache(shape, mask=mask, device=weight.device, dtype=dtype or weight.dtype)
