"""A language model's body with a head that reads one state of each text: classes, or a score."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Pooling = Callable[[Tensor, Tensor | None], Tensor]


def last_token(
    hidden: Float[Tensor, "B T C"], attention_mask: Bool[Tensor, "B T"] | None
) -> Float[Tensor, "B C"]:
    """The state of the last real token: the only one that has seen the whole text, under a causal mask."""
    if attention_mask is None:
        return hidden[:, -1]
    places = torch.arange(hidden.shape[1], device=hidden.device)
    return _at(hidden, torch.where(attention_mask, places, -1).argmax(dim=1))


def first_token(
    hidden: Float[Tensor, "B T C"], attention_mask: Bool[Tensor, "B T"] | None
) -> Float[Tensor, "B C"]:
    """The state of the first real token, as BERT's [CLS] is read: for models that see both ways."""
    if attention_mask is None:
        return hidden[:, 0]
    return _at(hidden, attention_mask.int().argmax(dim=1))


def mean(
    hidden: Float[Tensor, "B T C"], attention_mask: Bool[Tensor, "B T"] | None
) -> Float[Tensor, "B C"]:
    """The mean of the states of all real tokens."""
    if attention_mask is None:
        return hidden.mean(dim=1)
    real = hidden.masked_fill(~attention_mask.unsqueeze(-1), 0.0)
    return real.sum(dim=1) / attention_mask.sum(dim=1, keepdim=True).clamp(min=1)


class AttentionPooling(nn.Module):
    """A mean of the states of all real tokens whose weights are learned (Yang et al. 2016, equations 8 to 10).

    A state weighs exp(query · state), so that words that say little come to weigh little, as inverse document
    frequencies have it in a bag of words. The query begins at 0: at first it is the mean.

    Args:
        dim: width C of the states.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(dim))

    def forward(
        self, hidden: Float[Tensor, "B T C"], attention_mask: Bool[Tensor, "B T"] | None
    ) -> Float[Tensor, "B C"]:
        """The pooled states: zeros for a text without any real token, as of `mean`."""
        scores = hidden @ self.query  # (B, T)
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
            hidden = hidden.masked_fill(~attention_mask.unsqueeze(-1), 0.0)
        return (scores.softmax(dim=1).unsqueeze(1) @ hidden).squeeze(1)


def _at(hidden: Tensor, places: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), places]


def _real(tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
    return torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask


def some_of(
    tokens: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"] | None, dropout: float
) -> Bool[Tensor, "B T"]:
    """Where tokens are real and not left out; each is left out with this probability, but never all of a text."""
    real = _real(tokens, attention_mask)
    kept = real & (torch.rand(tokens.shape, device=tokens.device) >= dropout)
    return torch.where(kept.any(dim=1, keepdim=True), kept, real)


def last_of_each(
    tokens: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"] | None
) -> Bool[Tensor, "B T"]:
    """Where a real token occurs for the last time in its text."""
    real = _real(tokens, attention_mask)
    # Equal tokens come side by side, in the order of the text.
    ordered, places = tokens.masked_fill(~real, -1).sort(dim=1, stable=True)
    last = F.pad(ordered[:, 1:] != ordered[:, :-1], (0, 1), value=True)
    return real & torch.zeros_like(real).scatter(1, places, last)


class Classifier(nn.Module):
    """The body of a language model and a linear head over one pooled state (Radford et al. 2018).

    Args:
        body: a language model with `hidden_states` and a linear `head`, which is taken off.
        num_classes: scores a text is given; 1 makes a reward model.
        pooling: from the states (B, T, C), and where they are real, to the one (B, C) that is read; None
            for what the body says of itself, its `pooling`, or `last_token`.
        dropout: probability before the head.
        token_dropout: probability with which a token of a text is left out in training, as if it were padding
            (Iyyer et al. 2015, "Deep unordered composition rivals syntactic methods for text classification"): a
            model that begins from nothing would know its few texts by their rare words.
        distinct: whether of a token that occurs several times in a text the pooling reads the last state only, the one
            that has seen the most under a causal mask: whether a word occurs says more of a text than how often.

    Raises:
        ValueError: num_classes is not positive, or token_dropout is outside of [0, 1).
    """

    def __init__(
        self,
        body: nn.Module,
        num_classes: int,
        pooling: Pooling | None = None,
        dropout: float = 0.0,
        token_dropout: float = 0.0,
        *,
        distinct: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: give 1 or more")
        if not 0 <= token_dropout < 1:
            raise ValueError(f"token_dropout={token_dropout}: give 0, or a probability below 1")
        self.token_dropout = token_dropout
        self.distinct = distinct
        self.num_classes = num_classes
        self.pooling: Pooling = pooling or getattr(body, "pooling", last_token)
        dim = cast(nn.Linear, body.head).in_features
        body.head = nn.Identity()
        self.body = body
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, num_classes)
        # As the body's own matrices begin: nearly even odds, whatever the width.
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, tokens: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B N"]:
        """The logits of the classes.

        Args:
            tokens: ids of the texts, padded on either side to one length.
            attention_mask: True where a token is real; without it all are.
        """
        body: Any = self.body
        if self.training and self.token_dropout:
            attention_mask = some_of(tokens, attention_mask, self.token_dropout)
        hidden = body.hidden_states(tokens, attention_mask=attention_mask)
        read = last_of_each(tokens, attention_mask) if self.distinct else attention_mask
        return self.head(self.dropout(self.pooling(hidden, read)))

    @property
    def blocks(self) -> nn.Module:
        """The body's blocks, for those who treat them one by one."""
        return cast(nn.Module, self.body.blocks)

    @property
    def context_length(self) -> int:
        """The most tokens of a text."""
        return cast(int, self.body.context_length)

    def flops_per_token(self, context: int | None = None) -> int:
        """Floating-point operations for one token of training: the body's, for the head reads one a text."""
        return cast(Any, self.body).flops_per_token(context)
