"""The best of several answers: drawn from the model, chosen by a reward."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from llm.generation.batch_responses import respond
from llm.generation.sampling import Sampler
from llm.tokenizers.base import Tokenizer


class Scored(NamedTuple):
    """An answer and its reward."""

    text: str
    score: float


def best_of(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    number: int,
    reward: Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]],
    max_tokens: int,
    sampler: Sampler,
    seed: int = 0,
    end_token: int | None = None,
    stops: Sequence[str] = (),
) -> list[list[Scored]]:
    """Several answers to each prompt, the best first (Stiennon et al. 2020, "best-of-N").

    What a reward is trained for is had without training the policy, at N times the cost of an answer.

    Args:
        model: a language model, see `Decoding`.
        tokenizer: the one that the model was trained with.
        prompts: tokens, at least one a prompt.
        number: N, answers to each.
        reward: of prompts, answers and the data's own answers, which are empty here.
        max_tokens: most tokens of an answer.
        sampler: chooses a token from the logits; it has to draw.
        seed: of the first answer; the others follow.
        end_token: ends an answer and is not part of it.
        stops: texts that end an answer and are not part of it.

    Raises:
        ValueError: fewer than 1 answer, or a temperature at which all are the same.
    """
    require_choice(number, sampler)
    every = [prompt for prompt in prompts for _ in range(number)]
    texts = respond(model, tokenizer, every, max_tokens, sampler, seed, end_token, stops, number)
    scores = reward([tokenizer.decode(prompt) for prompt in every], texts, [""] * len(every))
    scored = [Scored(*each) for each in zip(texts, scores, strict=True)]
    groups = [scored[at : at + number] for at in range(0, len(every), number)]
    return [sorted(group, key=lambda each: -each.score) for group in groups]


def require_choice(number: int, sampler: Sampler) -> None:
    """Let pass a number of answers among which there is something to choose.

    Raises:
        ValueError: fewer than 1 answer, or a temperature at which all are the same.
    """
    if number < 1:
        raise ValueError(f"{number} is not a number of answers; give 1 or more")
    if number > 1 and sampler.temperature == 0:
        raise ValueError(
            "sampler.temperature=0 gives the same answer every time; choose a temperature above 0"
        )
