"""Responses to many prompts, a batch at a time."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from llm.generation.generation_settings import GenerationSettings
from llm.generation.text_generation import stream_tokens
from llm.tokenizers.base import Tokenizer


def respond(
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda number: None,
) -> list[str]:
    """Return the model's response to each prompt, in order.

    A response does not depend on the batch size: the one to prompt i is drawn with the seed `settings.seed + i`.

    Args:
        model: a language model, see `Decoding`.
        tokenizer: the one that the model was trained with.
        prompts: tokens, at least one per prompt, as a template's `encode_prompt` returns them.
        settings: length, sampling and stopping conditions of each response.
        batch_size: number of prompts in a batch.
        advance: called after each batch with its number of prompts.

    Raises:
        ValueError: `batch_size` is below 1, or a prompt is empty.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is below 1; use 1 or more")
    responses: list[str] = []
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        texts = [""] * len(batch)
        own = replace(settings, seed=settings.seed + first)
        for row, piece in stream_tokens(model, tokenizer, prompts=batch, settings=own):
            texts[row] += piece
        responses += texts
        advance(len(batch))
    return responses
