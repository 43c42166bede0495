"""From logits to a token: functions of logits, and the sampler that applies them in order."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def repetition_penalty(
    logits: Float[Tensor, "B V"], seen: Bool[Tensor, "B V"], *, penalty: float
) -> Float[Tensor, "B V"]:
    """Make tokens that already occur in the text less likely (Keskar et al. 2019, CTRL).

    Args:
        logits: scores.
        seen: True for the tokens of each row's text so far.
        penalty: above 1 discourages repetition, 1 changes nothing, below 1 encourages it.
    """
    # A negative score is multiplied, because division would raise it.
    punished = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, punished, logits)


def top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Set all but the k highest scores to -inf (Fan et al. 2018); scores equal to the k-th stay too.

    Args:
        logits: scores.
        k: number of scores to keep; k of V or more keeps all.
    """
    # (B, 1): the k-th highest score of each row.
    threshold = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < threshold, -math.inf)


def top_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep the smallest set of tokens that has probability p, the nucleus (Holtzman et al. 2020).

    Args:
        logits: scores.
        p: the probability to keep, from 0 exclusive to 1; the likeliest token always stays.
    """
    ordered, tokens = logits.sort()
    # In ascending order: a sum that begins with the smallest numbers has the smallest rounding errors.
    outside = ordered.softmax(-1).cumsum(-1) <= 1 - p
    # For a tiny p the rounded 1 - p is 1, and every token would be left out.
    outside[:, -1] = False
    # scatter puts the mask back in the order of the vocabulary.
    return logits.masked_fill(outside.scatter(1, tokens, outside), -math.inf)


def draw_token(logits: Float[Tensor, "B V"], uniform: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Draw a token from softmax(logits) by inverting its cumulative distribution.

    One number from [0, 1) decides a row, so the token of a row does not depend on the other rows.

    Args:
        logits: scores; a token with -inf is never drawn.
        uniform: one number per row from [0, 1).
    """
    cumulative = logits.softmax(-1).cumsum(-1)
    # The rounded total may differ from 1; scaled by it, the number always stays below it.
    threshold = uniform.to(cumulative.dtype)[:, None] * cumulative[:, -1:]
    # The first token whose cumulative probability exceeds the number: each token has an interval of [0, 1)
    # as long as its probability. (B, V), (B, 1) -> (B, 1) -> (B)
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1)


@dataclass(frozen=True)
class Sampler:
    """Choice of the next token: repetition penalty, temperature, top-k, top-p, then a draw.

    Args:
        temperature: divides the scores: below 1 sharpens the distribution, above 1 flattens it; 0 is
            greedy decoding, always the most likely token.
        top_k: draw only from the k most likely tokens.
        top_p: draw only from the smallest set of tokens with this total probability.
        repetition_penalty: above 1 makes tokens of the text so far less likely.

    Raises:
        ValueError: a setting is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature={self.temperature}: choose 0 for greedy decoding, or more"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: keep at least 1 token, or null for all")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is outside of (0, 1]: 1 or null keeps all tokens")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty} must be above 0: 1 changes nothing"
            )

    def __call__(
        self,
        logits: Float[Tensor, "B V"],
        uniform: Float[Tensor, "B"],
        *,
        seen: Bool[Tensor, "B V"] | None = None,
    ) -> Int[Tensor, "B"]:
        """Choose a token for each row.

        Args:
            logits: scores, of any precision.
            uniform: one random number per row from [0, 1).
            seen: True for the tokens of each row's text so far; needed only for a repetition penalty.
        """
        if self.repetition_penalty != 1 and seen is not None:
            logits = repetition_penalty(logits, seen, penalty=self.repetition_penalty)
        if self.temperature == 0:
            return logits.argmax(-1)
        # float32: the cumulative sum over V tokens in draw_token needs more than half precision.
        logits = logits.float() / self.temperature
        if self.top_k is not None:
            logits = top_k(logits, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            logits = top_p(logits, self.top_p)
        return draw_token(logits, uniform)
