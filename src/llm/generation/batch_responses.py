"""Many prompts answered, a batch at a time."""

from collections.abc import Callable, Sequence

from torch import nn

from llm.generation.sampling import Sampler
from llm.generation.text_generation import stream_tokens
from llm.tokenizers.base import Tokenizer


def respond(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampler: Sampler | None = None,
    seed: int = 0,
    end_token: int | None = None,
    stops: Sequence[str] = (),
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda number: None,
) -> list[str]:
    """What a model answers to each prompt, in their order.

    An answer does not depend on the size of the batches: prompt i is drawn with the seed `seed + i`.

    Args:
        model: a language model, see `Decoding`.
        tokenizer: the one that the model was trained with.
        prompts: tokens, at least one a prompt, as a template's `encode_prompt` gives them.
        max_tokens: most tokens of an answer.
        sampler: chooses a token from the logits; without it always the likeliest.
        seed: of the first prompt.
        end_token: ends an answer and is not part of it, as does the tokenizer's end of a text.
        stops: texts that end an answer and are not part of it.
        batch_size: how many prompts are answered together.
        advance: told of the number of prompts answered after each batch.

    Raises:
        ValueError: a setting out of its range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give 1 or more")
    sampler = sampler or Sampler(temperature=0.0)
    end_tokens = () if end_token is None else (end_token,)
    responses: list[str] = []
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        texts = [""] * len(batch)
        for row, piece in stream_tokens(
            model, tokenizer, batch, max_tokens, sampler, seed + first, stops, end_tokens
        ):
            texts[row] += piece
        responses += texts
        advance(len(batch))
    return responses
