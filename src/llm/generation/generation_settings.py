"""Settings of generation, apart from the model and the prompts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from llm.generation.sampling import Sampler

GREEDY = Sampler(temperature=0.0)


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Length, sampling, seed and stopping conditions of a batch of texts.

    Attributes:
        max_tokens: maximum number of tokens added to a prompt.
        sampler: chooses each token from the logits; by default the most likely one.
        seed: seed of the first row; row i uses `seed + i`, so a row does not depend on the others.
        end_tokens: tokens that end a row and are not part of its text.
        stops: texts that end a row and are not part of it.

    Raises:
        ValueError: `max_tokens` is negative.
    """

    max_tokens: int
    sampler: Sampler = GREEDY
    seed: int = 0
    end_tokens: Collection[int] = ()
    stops: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise ValueError(f"max_tokens={self.max_tokens} is negative; use 0 or more")
