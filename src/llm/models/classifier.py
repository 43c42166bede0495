"""A language model's body with a head over one pooled state per text: class logits or a score."""

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
    """Return the state of the last real token, which depends on the whole text under a causal mask."""
    if attention_mask is None:
        return hidden[:, -1]
    index = torch.arange(hidden.shape[1], device=hidden.device)
    # The largest index of a real token, whichever side the padding is on. (B, T, C) -> (B, C)
    return _at(hidden, torch.where(attention_mask, index, -1).argmax(dim=1))


def first_token(
    hidden: Float[Tensor, "B T C"], attention_mask: Bool[Tensor, "B T"] | None
) -> Float[Tensor, "B C"]:
    """Return the state of the first real token, such as BERT's [CLS]: for bidirectional models."""
    if attention_mask is None:
        return hidden[:, 0]
    # argmax returns the first of equal maxima.
    return _at(hidden, attention_mask.int().argmax(dim=1))


def mean(
    hidden: Float[Tensor, "B T C"], attention_mask: Bool[Tensor, "B T"] | None
) -> Float[Tensor, "B C"]:
    """Return the mean of the states of all real tokens."""
    if attention_mask is None:
        return hidden.mean(dim=1)
    real = hidden.masked_fill(~attention_mask.unsqueeze(-1), 0.0)
    return real.sum(dim=1) / attention_mask.sum(dim=1, keepdim=True).clamp(min=1)


class AttentionPooling(nn.Module):
    """A weighted mean of the states of all real tokens (Yang et al. 2016, equations 8 to 10).

    The weight of a state is proportional to exp(query · state), so common words can get small weights. The learned
    query begins at 0, which gives the plain mean.

    Args:
        dim: width C of the states.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(dim))

    def forward(
        self, hidden: Float[Tensor, "B T C"], attention_mask: Bool[Tensor, "B T"] | None
    ) -> Float[Tensor, "B C"]:
        """Return the pooled states; zeros for a text without any real token, as `mean` does."""
        scores = hidden @ self.query  # (B, T)
        if attention_mask is not None:
            # The smallest number and not -inf: a softmax of only -inf is NaN.
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
            hidden = hidden.masked_fill(~attention_mask.unsqueeze(-1), 0.0)
        # (B, 1, T) @ (B, T, C) -> (B, 1, C) -> (B, C)
        return (scores.softmax(dim=1).unsqueeze(1) @ hidden).squeeze(1)


def _at(hidden: Tensor, index: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), index]


def _real(tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
    return torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask


def drop_tokens(
    tokens: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"] | None, *, dropout: float
) -> Bool[Tensor, "B T"]:
    """Return the mask of real tokens after dropping each at random, but never all of a text."""
    real = _real(tokens, attention_mask)
    kept = real & (torch.rand(tokens.shape, device=tokens.device) >= dropout)
    return torch.where(kept.any(dim=1, keepdim=True), kept, real)


def last_occurrences(
    tokens: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"] | None
) -> Bool[Tensor, "B T"]:
    """Return a mask of the last occurrence of each distinct real token of a text."""
    real = _real(tokens, attention_mask)
    # A stable sort puts equal tokens next to each other, in the order of the text.
    ordered, order = tokens.masked_fill(~real, -1).sort(dim=1, stable=True)
    last = F.pad(ordered[:, 1:] != ordered[:, :-1], (0, 1), value=True)
    return real & torch.zeros_like(real).scatter(1, order, last)


class Classifier(nn.Module):
    """The body of a language model and a linear head over one pooled state (Radford et al. 2018).

    Args:
        body: a language model with `hidden_states` and a linear `head`, which is removed.
        num_classes: number of logits per text; 1 makes a reward model.
        pooling: maps the states (B, T, C) and the mask of real tokens to (B, C); None takes the `pooling` of the
            body, or `last_token` if it has none.
        dropout: probability before the head.
        token_dropout: probability of treating a token as padding in training (Iyyer et al. 2015, "Deep unordered
            composition rivals syntactic methods for text classification"). Without it a model trained from scratch
            on few texts memorizes them by their rare words.
        distinct: whether the pooling reads each distinct token once, because whether a word occurs says more than
            how often. It reads the last position, whose state depends on the most text under a causal mask.
        bias: whether the head has a bias; the classifiers of Hugging Face's library have none.

    Raises:
        ValueError: num_classes is not positive, or token_dropout is outside of [0, 1).
    """

    def __init__(
        self,
        body: nn.Module,
        num_classes: int,
        *,
        pooling: Pooling | None = None,
        dropout: float = 0.0,
        token_dropout: float = 0.0,
        distinct: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: give 1 or more")
        if not 0 <= token_dropout < 1:
            raise ValueError(f"token_dropout={token_dropout}: give 0, or a probability below 1")
        self.token_dropout = token_dropout
        self.distinct = distinct
        self.num_classes = num_classes
        self.context_length = cast(int, body.context_length)
        self.pooling: Pooling = pooling or getattr(body, "pooling", last_token)
        dim = cast(nn.Linear, body.head).in_features
        body.head = nn.Identity()
        self.body = body
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, num_classes, bias=bias)
        # As in the body; so small that all classes begin with nearly equal probability.
        nn.init.normal_(self.head.weight, std=0.02)
        if bias:
            nn.init.zeros_(self.head.bias)

    def forward(
        self, tokens: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B N"]:
        """Return the logits of the classes.

        Args:
            tokens: ids of the texts, padded on either side to one length.
            attention_mask: True for real tokens; None if all are.
        """
        body: Any = self.body
        # The body does not attend to dropped tokens either.
        if self.training and self.token_dropout:
            attention_mask = drop_tokens(tokens, attention_mask, dropout=self.token_dropout)
        hidden = body.hidden_states(tokens, attention_mask=attention_mask)
        read = last_occurrences(tokens, attention_mask) if self.distinct else attention_mask
        return self.head(self.dropout(self.pooling(hidden, read)))

    @property
    def blocks(self) -> nn.Module:
        """The body's blocks, for code that handles blocks one by one."""
        return cast(nn.Module, self.body.blocks)

    def flops_per_token(self, context: int) -> int:
        """Return the floating-point operations of the body for one token; the head runs once per text."""
        return cast(Any, self.body).flops_per_token(context)
