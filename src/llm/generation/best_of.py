"""The best of several responses of a model, chosen by a reward."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from llm.generation.batch_responses import respond
from llm.generation.generation_settings import GenerationSettings
from llm.generation.sampling import Sampler
from llm.tokenizers.base import Tokenizer


class Scored(NamedTuple):
    """A response and its reward."""

    text: str
    score: float


def best_of(
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    prompts: Sequence[Sequence[int]],
    number: int,
    reward: Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]],
    settings: GenerationSettings,
) -> list[list[Scored]]:
    """Return several responses to each prompt, the best first (Stiennon et al. 2020, "best-of-N").

    It raises the reward without training, at N times the cost of one response.

    Args:
        model: a language model, see `Decoding`.
        tokenizer: the one that the model was trained with.
        prompts: tokens, at least one per prompt.
        number: N, the number of responses to each prompt.
        reward: maps prompts, responses and references (empty here) to scores.
        settings: length, sampling and stopping conditions of each response.

    Raises:
        ValueError: see `require_choice`.
    """
    require_choice(number, settings.sampler)
    every = [prompt for prompt in prompts for _ in range(number)]
    # One prompt's responses fill one batch.
    texts = respond(model, tokenizer, prompts=every, settings=settings, batch_size=number)
    scores = reward([tokenizer.decode(prompt) for prompt in every], texts, [""] * len(every))
    scored = [Scored(*each) for each in zip(texts, scores, strict=True)]
    groups = [scored[at : at + number] for at in range(0, len(every), number)]
    return [sorted(group, key=lambda each: -each.score) for group in groups]


def require_choice(number: int, sampler: Sampler) -> None:
    """Check that there are different responses to choose from.

    Raises:
        ValueError: fewer than 1 response, or several at a temperature of 0.
    """
    if number < 1:
        raise ValueError(f"{number} is not a number of responses; give 1 or more")
    if number > 1 and sampler.temperature == 0:
        raise ValueError(
            "sampler.temperature=0 gives the same response every time; choose a temperature above 0"
        )
