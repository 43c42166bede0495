"""The decoder-only Transformer: GPT-2, Llama and their relatives are this class with other parts."""

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm.models.errors import ModelError
from llm.models.size import require_sizes
from llm.nn.attention import Attention
from llm.nn.block import Block
from llm.nn.init import gpt2
from llm.nn.kv_cache import Cache
from llm.nn.masks import Predicate, as_bias, both, causal, not_padding, same_document
from llm.nn.positions import Position, Positions
from llm.nn.residual import Residual, pre_norm


class GPT(nn.Module):
    """Embeddings, a stack of blocks that see only the past, a head (Radford et al. 2018, 2019).

    Args:
        vocab_size: number V of tokens.
        context_length: tokens in a training example; the default capacity of a cache.
        dim: width C.
        num_layers: number of blocks.
        position: how the model knows the order of its tokens.
        attention: from the width, makes a block's attention.
        feed_forward: from the width, makes a block's feed-forward layer.
        norm: from the width, makes a norm; two a block.
        residual: how a sublayer joins the stream.
        final_norm: from the width, makes the norm before the head; None leaves it out.
        mask: who may see whom, in places of the sequence.
        init: sets the parameters, once.
        dropout: probability for the embeddings.
        tie_weights: whether the head uses the embedding's matrix (Press and Wolf 2017).

    Raises:
        ValueError: a size is not positive, or parts do not fit each other.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
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
        # What kernels know by themselves needs no mask; a config hands functions in as partials.
        self.mask_is_causal = getattr(mask, "func", mask) is causal

        self.embedding = nn.Embedding(vocab_size, dim)
        self.position = position
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(dim, attention, feed_forward, norm, residual) for _ in range(num_layers)
        )
        self.final_norm = final_norm(dim) if final_norm is not None else nn.Identity()
        # A tied head's own matrix would be thrown away, so none is made: meta holds no memory.
        device = "meta" if tie_weights else self.embedding.weight.device
        self.head = nn.Linear(dim, vocab_size, bias=False, device=device)
        if tie_weights:
            self.head.weight = self.embedding.weight
        init(self)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        cache: Cache | None = None,
        positions: Int[Tensor, "B T"] | Int[Tensor, "T"] | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of each next token; the arguments are those of `hidden`."""
        return self.head(self.hidden_states(tokens, cache, positions, document_ids, attention_mask))

    def hidden_states(
        self,
        tokens: Int[Tensor, "B T"],
        cache: Cache | None = None,
        positions: Int[Tensor, "B T"] | Int[Tensor, "T"] | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """The states that the head reads.

        Args:
            tokens: ids below `vocab_size`.
            cache: what earlier calls computed; the new tokens continue it and are appended.
            positions: of the tokens, (T) or (B, T). By default they go on from the cache, or from
                0, and each row counts only its real tokens.
            document_ids: which document each token is of; attention stays within it.
            attention_mask: True where a token is real, False where it is padding, on either side.

        Raises:
            ValueError: a token id is out of range, the cache or the positions are full, or
                `document_ids` come with a cache.
        """
        places = _next_places(tokens, cache, attention_mask) if positions is None else positions
        if cache is not None:
            given = None if isinstance(places, slice) else places
            cache.describe(tokens.shape[1], given, attention_mask)

        x = self.dropout(self.position.embed(self._embed(tokens), places))
        rotation = self.position.rotation(x, places)
        mask = self._mask(x, places, cache, document_ids, attention_mask)
        for index, block in enumerate(self.blocks):
            layer_cache = cache.layers[index] if cache is not None else None
            x = block(x, rotation, mask, mask is None, layer_cache)
        return self.final_norm(x)

    def new_cache(
        self, batch_size: int, capacity: int | None = None, dtype: torch.dtype | None = None
    ) -> Cache:
        """An empty cache for `capacity` tokens a row, `context_length` unless given."""
        capacity = capacity or self.context_length
        layers = self._attentions()
        return Cache([layer.new_cache(batch_size, capacity, dtype) for layer in layers])

    @property
    def causal(self) -> bool:
        """Whether no position sees a later one, as far as the mask says for the first 64."""
        places = torch.arange(min(self.context_length, 64), device="cpu")
        return not self.mask(places, places).triu(1).any()

    def num_parameters(self, embeddings: bool = True) -> int:
        """Number of parameters, shared ones once.

        Args:
            embeddings: whether to count the tables of tokens and positions and the head; without
                them it is the N of Kaplan et al. 2020.
        """
        counted = self if embeddings else nn.ModuleList([self.blocks, self.final_norm])
        return sum(parameter.numel() for parameter in counted.parameters())

    def flops_per_token(self, context: int | None = None) -> int:
        """Floating-point operations for one token of training, forward and backward.

        6N for the N parameters that multiply, 12·L·H·D·T for attention over a context of T
        (Chowdhery et al. 2022, PaLM, appendix B).
        """
        context = context or self.context_length
        head = sum(parameter.numel() for parameter in self.head.parameters())
        multiplying = self.num_parameters(embeddings=False) + head
        # Of the whole model, whatever part of it this device has: a parameter knows its whole shape.
        width = sum(layer.output.weight.shape[1] for layer in self._attentions())
        return 6 * multiplying + 12 * width * context

    def _attentions(self) -> list[Attention]:
        return [cast(Attention, block.attention) for block in self.blocks]

    def _embed(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        try:
            return self.embedding(tokens)
        except IndexError as error:  # asked for afterwards: a check before would wait for a device
            low, high = tokens.min().item(), tokens.max().item()
            raise ModelError(
                f"model: token ids from {low} to {high} do not fit vocab_size={self.vocab_size}; use the tokenizer "
                "that the model was made for"
            ) from error

    def _mask(
        self,
        x: Float[Tensor, "B T C"],
        places: Positions,
        cache: Cache | None,
        document_ids: Int[Tensor, "B T"] | None,
        attention_mask: Bool[Tensor, "B T"] | None,
    ) -> Tensor | None:
        """All that limits or shades attention, in one mask; None where that is causality alone."""
        if cache is not None and document_ids is not None:
            raise ValueError("document_ids and a cache do not go together: a cache holds one text")
        start = cache.length if cache is not None else 0
        end = start + x.shape[1]
        real = cache.valid if cache is not None else attention_mask

        limits = [self.mask]
        if real is not None:
            limits.append(not_padding(real))
        if document_ids is not None:
            limits.append(same_document(document_ids))
        bias = self.position.bias(x, *_query_and_key_places(places, start, end, cache))
        if self.mask_is_causal and len(limits) == 1 and bias is None:
            return None
        columns = torch.arange(end, device=x.device)
        allowed = both(*limits)(columns[start:], columns).unsqueeze(-3)
        return allowed if bias is None else as_bias(allowed, bias)


def _next_places(
    tokens: Int[Tensor, "B T"], cache: Cache | None, attention_mask: Bool[Tensor, "B T"] | None
) -> Positions:
    """Positions that go on from the cache: a slice, or (B, T) where rows are padded.

    A padded row counts only its real tokens, so its text stands at 0, 1, 2, … however it is padded.
    Padding before the text stands at -1, which nothing real sees.
    """
    start = cache.length if cache is not None else 0
    if attention_mask is None and (cache is None or not cache.per_row):
        return slice(start, start + tokens.shape[1])
    real = torch.ones_like(tokens) if attention_mask is None else attention_mask
    last = cache.positions[:, start - 1 : start] if cache is not None and start else -1
    return last + real.cumsum(dim=1)


def _query_and_key_places(
    places: Positions, start: int, end: int, cache: Cache | None
) -> tuple[slice | Tensor, slice | Tensor]:
    """Positions of the new tokens, and of all that they may see."""
    if cache is None:
        return places, places
    if isinstance(places, slice):
        return places, slice(0, end)
    return cache.positions[:, start:end], cache.positions[:, :end]
