"""Multi-head latent attention: keys and values of all heads from one small vector per token (DeepSeek-AI 2024, V2).

The cache holds this vector, the latent, and one rotated key that all heads share: L + R numbers per token, where
multi-head attention stores 2 · H · D. In training keys and values are expanded from the latent. In decoding their
projections are absorbed by those of the query and the output, so that no old token is expanded again:

    query · (W_key latent) = (W_keyᵀ query) · latent        weights · (W_value latents) = W_value (weights · latents)

A rotation between query and W_key would depend on the position of the key, and W_key could not move past it. So the R
columns that rotate are separate, and have a key of their own (section 2.1.3).
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from llm.nn.attention import Kernel, fused_attention
from llm.nn.context import Context
from llm.nn.heads import head_width
from llm.nn.kv_cache import KeysAndValues, new_kv_cache
from llm.nn.layer_state import LayerState
from llm.nn.masking_kernel import Mask, fitting
from llm.nn.masks import Predicate
from llm.nn.norms import RMSNorm
from llm.nn.positions import Position, Rotation, rotate
from llm.nn.token_mixer import TokenMixer


class LatentAttention(TokenMixer):
    """Self-attention with H heads whose keys and values are projections of a latent of width L.

    Args:
        dim: width C of the model.
        num_heads: number H of heads.
        latent_dim: width L of the latent; None means 4 · `head_dim`, as in DeepSeek-V2.
        query_latent_dim: width of a latent for the queries, which saves memory in training; None projects directly.
        head_dim: width D of the part of a query and a key without position; None means `dim / num_heads`.
        rotary_dim: width R of the part that rotates, even; None means `head_dim / 2`, rounded up to an even number.
        value_dim: width V of a value, at most D + R; None means `head_dim`.
        bias: whether the output projection has a bias.
        qkv_bias: whether the projections to the latents have biases.
        dropout: probability for attention weights and for the output.
        norm: makes the norm of a latent for a width.
        kernel: the function that computes attention: `naive_attention` or an equivalent.

    Raises:
        ValueError: `num_heads` does not divide `dim`, or a width is out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        latent_dim: int | None = None,
        query_latent_dim: int | None = None,
        head_dim: int | None = None,
        rotary_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = True,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        norm: Callable[[int], nn.Module] = RMSNorm,
        kernel: Kernel = fused_attention,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_width(dim, num_heads, head_dim=head_dim)
        self.rotary_dim = rotary_dim or 2 * math.ceil(self.head_dim / 4)
        self.value_dim = value_dim or self.head_dim
        self.latent_dim = latent_dim or 4 * self.head_dim
        if self.rotary_dim % 2:
            raise ValueError(
                f"rotary_dim={rotary_dim} is odd, but columns rotate in pairs; choose an even number"
            )
        if self.value_dim > self.query_dim:
            raise ValueError(
                f"value_dim={value_dim}: give at most head_dim + rotary_dim = {self.query_dim}, the width of a query"
            )
        self.kernel = fitting(kernel, width=self.query_dim, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

        queries = num_heads * self.query_dim
        self.query_down = (
            nn.Linear(dim, query_latent_dim, bias=qkv_bias) if query_latent_dim else None
        )
        self.query_norm = norm(query_latent_dim) if query_latent_dim else None
        self.query = nn.Linear(query_latent_dim or dim, queries, bias=False)
        self.down = nn.Linear(dim, self.latent_dim + self.rotary_dim, bias=qkv_bias)
        self.latent_norm = norm(self.latent_dim)
        # Rows of each head in turn: D of the key, V of the value.
        self.up = nn.Linear(
            self.latent_dim, num_heads * (self.head_dim + self.value_dim), bias=False
        )
        self.output = nn.Linear(num_heads * self.value_dim, dim, bias=bias)

    @property
    def query_dim(self) -> int:
        """Width D + R of a query and of a key."""
        return self.head_dim + self.rotary_dim

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        *,
        rotation: Rotation | None = None,
        mask: Mask = None,
        causal: bool = True,
        window: int | None = None,
        cache: KeysAndValues | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Return the output projection of the heads; the arguments are those of `Attention.forward`."""
        query = self._queries(x, rotation)
        # (B, T, C) -> (B, T, L + R) -> one head of each: (B, 1, T, L) and (B, 1, T, R)
        down = self.down(x).unsqueeze(1)
        latent, rotary_key = down.split((self.latent_dim, self.rotary_dim), dim=-1)
        latent = self.latent_norm(latent)
        if rotation is not None:
            rotary_key = rotate(rotary_key, rotation)
        if cache is not None:
            rotary_key, latent = cache.append(rotary_key, latent)
            query = query.to(latent.dtype)
        # With earlier tokens in the cache, expanding all of them costs more than absorbing the projections.
        attend = self._absorbed if latent.shape[2] > x.shape[1] else self._expanded
        dropout = self.dropout.p if self.training else 0.0
        inputs = {"mask": mask, "causal": causal, "window": window, "dropout": dropout}
        heads = attend(query, latent, rotary_key, **inputs).to(x.dtype)
        # (B, H, T, V) -> (B, T, H, V) -> (B, T, H · V) -> (B, T, C)
        return self.dropout(self.output(heads.transpose(1, 2).flatten(2)))

    def prepare(
        self,
        x: Float[Tensor, "B T C"],
        context: Context,
        *,
        position: Position | None,
        mask: Predicate | None,
        cache: LayerState | None,
    ) -> dict[str, Any]:
        """Return rotation of R columns and mask, see `TokenMixer.prepare`."""
        stored, given = cast(KeysAndValues | None, cache), {"position": position, "mask": mask}
        return context.attention_inputs(
            x, **given, cache=stored, kernel=self.kernel, width=self.rotary_dim
        )

    def mixing_flops(self, keys: int) -> int:
        """Return the operations of training for one query with so many keys, expanded.

        Scores and weighted values are a product each, of a multiplication and an addition; the backward pass takes
        twice as many.
        """
        return 6 * self.num_heads * (self.query_dim + self.value_dim) * keys

    def new_cache(
        self, batch_size: int, capacity: int, *, dtype: torch.dtype | None, mask: Predicate
    ) -> KeysAndValues:
        """Return an empty cache of rotated keys and latents."""
        weight = self.output.weight
        shape = (batch_size, 1, capacity, self.rotary_dim)
        return new_kv_cache(
            shape,
            value_dim=self.latent_dim,
            mask=mask,
            device=weight.device,
            dtype=dtype or weight.dtype,
        )

    def _queries(
        self, x: Float[Tensor, "B T C"], rotation: Rotation | None
    ) -> Float[Tensor, "B H T D_and_R"]:
        """Return the queries, of which the last R columns are rotated."""
        if self.query_down is not None and self.query_norm is not None:
            x = self.query_norm(self.query_down(x))
        query = self.query(x).unflatten(-1, (-1, self.query_dim)).transpose(1, 2)
        if rotation is None:
            return query
        still, turning = query.split((self.head_dim, self.rotary_dim), dim=-1)
        return torch.cat((still, rotate(turning, rotation)), dim=-1)

    def _expanded(
        self,
        query: Float[Tensor, "B H T D_and_R"],
        latent: Float[Tensor, "B 1 S L"],
        rotary_key: Float[Tensor, "B 1 S R"],
        **inputs: Any,
    ) -> Float[Tensor, "B H T V"]:
        """Attend to keys and values of every head: this is the definition."""
        # (B, 1, S, L) -> (B, S, H, D + V) -> (B, H, S, D) and (B, H, S, V)
        heads = self.up(latent.squeeze(1)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = heads.split((self.head_dim, self.value_dim), dim=-1)
        key = torch.cat((key, rotary_key.expand(-1, self.num_heads, -1, -1)), dim=-1)
        # Kernels take keys and values of one width; columns of zeros are cut off again.
        value = F.pad(value, (0, self.query_dim - self.value_dim))
        return self.kernel(query, key, value, **inputs)[..., : self.value_dim]

    def _absorbed(
        self,
        query: Float[Tensor, "B H T D_and_R"],
        latent: Float[Tensor, "B 1 S L"],
        rotary_key: Float[Tensor, "B 1 S R"],
        **inputs: Any,
    ) -> Float[Tensor, "B H T V"]:
        """Compute the same with the latents as keys and values of a single head, which all queries share."""
        # (H · (D + V), L) -> (H, D, L) and (H, V, L)
        weight = self.up.weight.to(latent.dtype).unflatten(0, (self.num_heads, -1))
        key_weight, value_weight = weight.split((self.head_dim, self.value_dim), dim=1)
        still, turning = query.split((self.head_dim, self.rotary_dim), dim=-1)
        # (B, H, T, D) @ (H, D, L) -> (B, H, T, L), then with the rotated columns (B, H, T, L + R)
        query = torch.cat((still @ key_weight, turning), dim=-1)
        key = torch.cat((latent, rotary_key), dim=-1)
        # Kernels divide by the root of this width; the scores belong to queries of width D + R.
        query = query * math.sqrt(query.shape[-1] / self.query_dim)
        mixed = self.kernel(query, key, key, **inputs)[..., : self.latent_dim]
        # (B, H, T, L) @ (H, L, V) -> (B, H, T, V)
        return mixed @ value_weight.transpose(1, 2)
