"""The decoder-only Transformer: GPT-2, Llama and related models are this class with different parts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm.models.errors import ModelError
from llm.models.size import flops_per_token, require_sizes
from llm.nn.block import Block
from llm.nn.context import Context
from llm.nn.init import gpt2
from llm.nn.kv_cache import Cache
from llm.nn.layer_schedule import Layer
from llm.nn.masks import Predicate, causal, is_same_function
from llm.nn.positions import Learned, NoPosition, Position, next_positions
from llm.nn.recurrent_mixer import RecurrentState
from llm.nn.residual import Residual, pre_norm
from llm.nn.stack import Stack
from llm.nn.token_mixer import TokenMixer


class GPT(nn.Module):
    """Embeddings, a stack of causal blocks and a head (Radford et al. 2018, 2019).

    Args:
        vocab_size: number V of tokens.
        context_length: tokens in a training example; the default capacity of a cache.
        dim: width C.
        num_layers: number of blocks.
        position: the position encoding.
        embedding: makes the embedding of V tokens with width C.
        head: makes the linear layer from the width C to V logits.
        attention: makes the attention layer of a block for a width, or a recurrence in its place.
        feed_forward: makes the feed-forward layer of a block for a width; None leaves it out.
        norm: makes a norm for a width, one for each sublayer of a block.
        residual: adds a sublayer to the residual stream.
        block: arranges these parts: `Block`, `ParallelBlock` or `SandwichBlock`.
        final_norm: makes the norm before the head for a width; None leaves it out.
        mask: which keys a query may attend to, by their indices in the sequence.
        layers: kinds of layers by name, if they differ; each has the parts above that it does not set.
        pattern: the order of the kinds, such as `[5*local, full]`; repeated up to `num_layers`.
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
        attention: Callable[[int], TokenMixer],
        feed_forward: Callable[[int], nn.Module] | None,
        norm: Callable[[int], nn.Module],
        residual: Residual = pre_norm,
        block: Callable[..., Block] = Block,
        final_norm: Callable[[int], nn.Module] | None = None,
        mask: Predicate = causal,
        layers: Mapping[str, Layer] | None = None,
        pattern: Sequence[str] | None = None,
        embedding: Callable[[int, int], nn.Embedding] = nn.Embedding,
        head: Callable[..., nn.Linear] = nn.Linear,
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

        self.embedding = embedding(vocab_size, dim)
        self.position = position
        self.dropout = nn.Dropout(dropout)
        layer = Layer(
            attention=attention,
            feed_forward=feed_forward,
            norm=norm,
            residual=residual,
            block=block,
        )
        self.blocks = Stack(dim, num_layers, layer=layer, layers=layers, pattern=pattern)
        self._require_used()
        self.final_norm = final_norm(dim) if final_norm is not None else nn.Identity()
        # A tied head's own matrix is replaced below; on meta it takes no memory.
        device = "meta" if tie_weights else self.embedding.weight.device
        self.head = head(dim, vocab_size, bias=False, device=device)
        if tie_weights:
            self.head.weight = self.embedding.weight
        init(self)

    def _require_used(self) -> None:
        """Refuse a mask or a relative position that no layer uses: a comparison would show no difference."""
        attending = [b for b in cast(Iterable[Block], self.blocks) if b.attention.attends]
        if not is_same_function(self.mask, causal) and all(b.mask for b in attending):
            raise ValueError("mask: no layer of this model uses it; leave it out")
        is_relative = type(self.position).embed is Position.embed
        is_encoding = is_relative and not isinstance(self.position, NoPosition)
        if is_encoding and all(b.position for b in attending):
            name = type(self.position).__name__
            raise ValueError(
                f"position: no layer of this model uses {name}; use model/position=none"
            )

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

        if cache is not None and document_ids is not None:
            raise ValueError(
                "document_ids and a cache cannot be used together: a cache holds one text"
            )
        context = Context(
            position=self.position,
            mask=self.mask,
            positions=resolved,
            start=cache.length if cache is not None else 0,
            cache=cache,
            document_ids=document_ids,
            attention_mask=attention_mask,
        )
        # (B, T) -> (B, T, C)
        x = self.dropout(self.position.embed(self._embed(tokens), resolved))
        x = self.blocks(x, context)
        if cache is not None:
            cache.length += tokens.shape[1]
        # With pre-norm the stream is a sum that grows with depth; this norm rescales it for the head.
        return self.final_norm(x)

    def new_cache(
        self, batch_size: int, capacity: int | None = None, *, dtype: torch.dtype | None = None
    ) -> Cache:
        """Return an empty cache for `capacity` tokens per row; the default is `context_length`."""
        capacity = capacity or self.context_length
        layers = [
            block.new_cache(batch_size, capacity, dtype=dtype, mask=self.mask)
            for block in cast(Iterable[Block], self.blocks)
        ]
        device = next(self.parameters()).device
        return Cache(layers, batch_size=batch_size, capacity=capacity, device=device)

    @property
    def has_bounded_state(self) -> bool:
        """Whether the cache does not grow with the text, so that a text may be longer than `context_length`."""
        layers = self.new_cache(1, 1).layers
        return all(layer.is_bounded for layer in layers) and not isinstance(self.position, Learned)

    @property
    def recurrent(self) -> bool:
        """Whether every layer is recurrent and there are no positions, so that training can carry the state."""
        layers = self.new_cache(1, 1).layers
        has_states = all(isinstance(layer, RecurrentState) for layer in layers)
        return has_states and isinstance(self.position, NoPosition)

    @property
    def causal(self) -> bool:
        """Whether no position attends to a later one, tested on the masks of the first 64 positions."""
        index = torch.arange(min(self.context_length, 64), device="cpu")
        masks = {block.mask or self.mask for block in cast(Iterable[Block], self.blocks)}
        return not any(mask(index, index).triu(1).any() for mask in masks)

    def flops_per_token(self, context: int) -> int:
        """Return the floating-point operations for one token of training."""
        others = self.final_norm, self.head
        return flops_per_token(self.blocks, *others, context=context, mask=self.mask)

    def _embed(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        try:
            return self.embedding(tokens)
        except IndexError as error:  # a check before the lookup would wait for the device each time
            low, high = tokens.min().item(), tokens.max().item()
            raise ModelError(
                f"model: token ids from {low} to {high} do not fit vocab_size={self.vocab_size}; use the model's "
                "own tokenizer"
            ) from error
