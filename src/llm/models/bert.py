"""BERT, an encoder-only Transformer: every position attends to the whole text."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm.models.classifier import first_token
from llm.models.size import flops_per_token, require_sizes
from llm.nn.activations import gelu
from llm.nn.attention import Attention
from llm.nn.block import Block
from llm.nn.context import Context
from llm.nn.init import truncated_normal
from llm.nn.layer_schedule import Layer
from llm.nn.masks import everything
from llm.nn.positions import ALiBi, Position, next_positions
from llm.nn.residual import Residual, post_norm
from llm.nn.stack import Stack


class MaskedHead(nn.Linear):
    """Prediction of the token at each position: a layer, a norm and the vocabulary (Devlin et al. 2019, 3.1).

    Args:
        dim: width C of the model.
        vocab_size: number V of tokens.
        activation: the nonlinearity of the layer.
        norm: makes the norm after it for a width.
    """

    def __init__(
        self,
        dim: int,
        vocab_size: int,
        *,
        activation: Callable[[Tensor], Tensor],
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__(dim, vocab_size)
        self.transform = nn.Linear(dim, dim)
        self.activation = activation
        self.norm = norm(dim)

    def forward(self, hidden: Float[Tensor, "*B C"]) -> Float[Tensor, "*B V"]:  # pyright: ignore
        """Return the logits of the token at each position."""
        return F.linear(self.norm(self.activation(self.transform(hidden))), self.weight, self.bias)


class BERT(nn.Module):
    """Embeddings of tokens, positions and segments, a stack of blocks, a head (Devlin et al. 2019).

    Args:
        vocab_size: number V of tokens.
        context_length: most tokens in a text.
        dim: width C.
        num_layers: number of blocks.
        position: the position encoding.
        attention: makes the attention layer of a block for a width.
        feed_forward: makes the feed-forward layer of a block for a width.
        norm: makes a norm for a width; each block has two, the embeddings and the head one each.
        residual: adds a sublayer to the residual stream.
        block: arranges these parts, such as `Block`.
        final_norm: makes a norm before the head for a width; None leaves it out.
        num_segments: most segments in a text, such as a question and its answer.
        activation: the nonlinearity in the head.
        init: initializes all parameters.
        dropout: probability for the embeddings.
        tie_weights: whether the head uses the embedding's matrix.

    Attributes:
        causal: False, as each position attends to the later ones.
        generates: False, as an appended token would change all earlier states.

    Raises:
        ValueError: a size is not positive, or the position is ALiBi.
    """

    causal = False
    generates = False

    # The default of a classifier: the first token, [CLS], attends to the whole text.
    pooling = staticmethod(first_token)

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
        residual: Residual = post_norm,
        block: Callable[..., Block] = Block,
        final_norm: Callable[[int], nn.Module] | None = None,
        num_segments: int = 2,
        activation: Callable[[Tensor], Tensor] = gelu,
        init: Callable[[nn.Module], None] = truncated_normal,
        dropout: float = 0.1,
        tie_weights: bool = True,
    ) -> None:
        super().__init__()
        require_sizes(vocab_size=vocab_size, context_length=context_length, dim=dim)
        require_sizes(num_layers=num_layers, num_segments=num_segments)
        if isinstance(position, ALiBi):
            raise ValueError(
                "position: ALiBi is defined for earlier keys only, but BERT attends to later ones too; "
                "choose learned, rotary, sinusoidal or none"
            )
        self.vocab_size = vocab_size
        self.context_length = context_length

        self.embedding = nn.Embedding(vocab_size, dim)
        self.position = position
        self.segment = nn.Embedding(num_segments, dim)
        # Post-norm blocks end with a norm, so the first block gets a normalized input too.
        self.embedding_norm = norm(dim)
        self.dropout = nn.Dropout(dropout)
        layer = Layer(
            attention=attention,
            feed_forward=feed_forward,
            norm=norm,
            residual=residual,
            block=block,
        )
        self.blocks = Stack(dim, num_layers, layer=layer)
        self.final_norm = final_norm(dim) if final_norm is not None else nn.Identity()
        # The state at position t predicts the token at t, which is masked in the input.
        self.head = MaskedHead(dim, vocab_size, activation=activation, norm=norm)
        if tie_weights:
            self.head.weight = self.embedding.weight
        init(self)

    def forward(self, tokens: Int[Tensor, "B T"], **context: Any) -> Float[Tensor, "B T V"]:
        """Return the logits of the token at each position; the arguments are those of `hidden_states`."""
        return self.head(self.hidden_states(tokens, **context))  # (B, T, C) -> (B, T, V)

    def hidden_states(
        self,
        tokens: Int[Tensor, "B T"],
        *,
        attention_mask: Bool[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Return the states that the head reads.

        Args:
            tokens: ids below `vocab_size`.
            attention_mask: True for real tokens, False for padding, which may be on either side.
            segments: segment of each token; by default 0, the first.

        Raises:
            ValueError: there are more tokens than positions.
        """
        positions = next_positions(tokens, None, attention_mask=attention_mask)
        segments = torch.zeros_like(tokens) if segments is None else segments
        # Three embeddings are added: token, segment and, in embed(), position. (B, T) -> (B, T, C)
        x = self.position.embed(self.embedding(tokens) + self.segment(segments), positions)
        x = self.dropout(self.embedding_norm(x))
        context = Context(
            position=self.position,
            mask=everything,
            positions=positions,
            attention_mask=attention_mask,
        )
        x = self.blocks(x, context)
        return self.final_norm(x)

    def new_cache(self, *_: object, **__: object) -> NoReturn:
        """Raise an error: earlier states depend on later tokens, so they cannot be cached.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "BERT attends to later tokens and cannot generate text; choose a model such as GPT"
        )

    def flops_per_token(self, context: int) -> int:
        """Return the floating-point operations for one token of training."""
        others = self.final_norm, self.head
        return flops_per_token(self.blocks, *others, context=context, mask=everything)
