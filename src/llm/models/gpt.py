"""The decoder-only Transformer: GPT-2, Llama and related models are this class with different parts."""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm.models.errors import ModelError
from llm.models.size import flops_per_token, require_sizes
from llm.nn.attention import Attention
from llm.nn.block import Block
from llm.nn.init import gpt2
from llm.nn.kv_cache import Cache
from llm.nn.masks import Predicate, as_bias, both, causal, not_padding, same_document
from llm.nn.positions import Position, Positions, next_positions
from llm.nn.residual import Residual, pre_norm


class GPT(nn.Module):
    """Embeddings, a stack of causal blocks and a head (Radford et al. 2018, 2019).

    Args:
        vocab_size: number V of tokens.
        context_length: tokens in a training example; the default capacity of a cache.
        dim: width C.
        num_layers: number of blocks.
        position: the position encoding.
        attention: makes the attention layer of a block for a width.
        feed_forward: makes the feed-forward layer of a block for a width.
        norm: makes a norm for a width; each block has two.
        residual: adds a sublayer to the residual stream.
        final_norm: makes the norm before the head for a width; None leaves it out.
        mask: which keys a query may attend to, by their indices in the sequence.
        init: initializes all parameters.
        dropout: probability for the embeddings.
        tie_weights: whether the head uses the embedding's matrix (Press and Wolf 2017).

    Raises:
        ValueError: a size is not positive, or sizes do not fit each other.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        *,
        dim: int,
        num_layers: int,
        position: Position,
        attention: Callable[[int], Attention],
        feed_forward: Callable[[int], nn.Module],
        norm: Callable[[int], nn.Module],
        residual: Residual = pre_norm,
        final_norm: Callable[[int], nn.Module] | None = None,
        mask: Predicate = causal,
        init: Callable[[nn.Module], None] = gpt2,
        dropout: float = 0.0,
        tie_weights: bool = True,
    ) -> None:
        super().__init__()
        require_sizes(
            vocab_size=vocab_size, context_length=context_length, dim=dim, num_layers=num_layers
        )
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.mask = mask
        # Kernels apply a causal mask without a tensor. A config passes the function as a partial, hence `func`.
        self.mask_is_causal = getattr(mask, "func", mask) is causal

        self.embedding = nn.Embedding(vocab_size, dim)
        self.position = position
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(dim, attention=attention, feed_forward=feed_forward, norm=norm, residual=residual)
            for _ in range(num_layers)
        )
        self.final_norm = final_norm(dim) if final_norm is not None else nn.Identity()
        # A tied head's own matrix is replaced below; on meta it takes no memory.
        device = "meta" if tie_weights else self.embedding.weight.device
        self.head = nn.Linear(dim, vocab_size, bias=False, device=device)
        if tie_weights:
            self.head.weight = self.embedding.weight
        init(self)

    def forward(self, tokens: Int[Tensor, "B T"], **context: Any) -> Float[Tensor, "B T V"]:
        """Return the logits of each next token; the arguments are those of `hidden_states`."""
        return self.head(self.hidden_states(tokens, **context))  # (B, T, C) -> (B, T, V)

    def hidden_states(
        self,
        tokens: Int[Tensor, "B T"],
        *,
        cache: Cache | None = None,
        positions: Int[Tensor, "B T"] | Int[Tensor, "T"] | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Return the states that the head reads.

        Args:
            tokens: ids below `vocab_size`.
            cache: keys and values of earlier calls; the new tokens continue it and are appended.
            positions: positions of the tokens, (T) or (B, T). By default they continue those of the
                cache, or begin at 0, and each row counts only its real tokens.
            document_ids: document of each token; attention stays within a document.
            attention_mask: True for real tokens, False for padding, which may be on either side.

        Raises:
            ValueError: a token id is out of range, the cache or the positions are full, or
                both `document_ids` and a cache are given.
        """
        # Positions count the tokens of a text, columns those of the batch: padding makes them differ.
        resolved = positions
        if resolved is None:
            resolved = next_positions(tokens, cache, attention_mask=attention_mask)
        if cache is not None:
            given = None if isinstance(resolved, slice) else resolved
            cache.describe(tokens.shape[1], positions=given, attention_mask=attention_mask)

        # (B, T) -> (B, T, C)
        x = self.dropout(self.position.embed(self._embed(tokens), resolved))
        # Rotation, mask and bias depend on positions only, so all blocks share them.
        rotation = self.position.rotation(x, resolved)
        mask = self._mask(
            x, resolved, cache=cache, document_ids=document_ids, attention_mask=attention_mask
        )
        for index, block in enumerate(self.blocks):
            layer_cache = cache.layers[index] if cache is not None else None
            x = block(x, rotation=rotation, mask=mask, causal=mask is None, cache=layer_cache)
        # With pre-norm the stream is a sum that grows with depth; this norm rescales it for the head.
        return self.final_norm(x)

    def new_cache(
        self, batch_size: int, capacity: int | None = None, *, dtype: torch.dtype | None = None
    ) -> Cache:
        """Return an empty cache for `capacity` tokens per row; the default is `context_length`."""
        capacity = capacity or self.context_length
        layers = [cast(Attention, block.attention) for block in self.blocks]
        return Cache([layer.new_cache(batch_size, capacity, dtype=dtype) for layer in layers])

    @property
    def causal(self) -> bool:
        """Whether no position attends to a later one, tested on the mask of the first 64 positions."""
        index = torch.arange(min(self.context_length, 64), device="cpu")
        return not self.mask(index, index).triu(1).any()

    def flops_per_token(self, context: int) -> int:
        """Return the floating-point operations for one token of training."""
        return flops_per_token(self.blocks, self.final_norm, self.head, context=context)

    def _embed(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        try:
            return self.embedding(tokens)
        except IndexError as error:  # a check before the lookup would wait for the device each time
            low, high = tokens.min().item(), tokens.max().item()
            raise ModelError(
                f"model: token ids from {low} to {high} do not fit vocab_size={self.vocab_size}; use the model's "
                "own tokenizer"
            ) from error

    def _mask(
        self,
        x: Float[Tensor, "B T C"],
        positions: Positions,
        *,
        cache: Cache | None,
        document_ids: Int[Tensor, "B T"] | None,
        attention_mask: Bool[Tensor, "B T"] | None,
    ) -> Tensor | None:
        """Return one mask for padding, documents and bias; None if a causal mask is enough."""
        if cache is not None and document_ids is not None:
            raise ValueError(
                "document_ids and a cache cannot be used together: a cache holds one text"
            )
        start = cache.length if cache is not None else 0
        end = start + x.shape[1]
        # A cache also has the padding of earlier columns.
        real = cache.valid if cache is not None else attention_mask

        limits = [self.mask]
        if real is not None:
            limits.append(not_padding(real))
        if document_ids is not None:
            limits.append(same_document(document_ids))
        queries, keys = _query_and_key_positions(positions, start=start, end=end, cache=cache)
        bias = self.position.bias(x, query_positions=queries, key_positions=keys)
        # Without a mask the fused kernel can use its causal path, which skips the keys after each query.
        if self.mask_is_causal and len(limits) == 1 and bias is None:
            return None
        columns = torch.arange(end, device=x.device)
        # (T, S) or (B, T, S), with an axis for the heads: (1, T, S) or (B, 1, T, S).
        allowed = both(*limits)(columns[start:], columns).unsqueeze(-3)
        return allowed if bias is None else as_bias(allowed, bias)


def _query_and_key_positions(
    positions: Positions, *, start: int, end: int, cache: Cache | None
) -> tuple[slice | Tensor, slice | Tensor]:
    """Return the positions of the new tokens and of all keys."""
    if cache is None:
        return positions, positions
    if isinstance(positions, slice):
        return positions, slice(0, end)
    return cache.positions[:, start:end], cache.positions[:, :end]
