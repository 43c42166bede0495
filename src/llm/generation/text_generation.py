"""Continuation of prompts, as text that is streamed in pieces."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from llm.generation.decoding import Decoding
from llm.generation.generation_settings import GenerationSettings
from llm.generation.prefix_cache import PrefixCache
from llm.generation.stopping import StopStrings
from llm.generation.streaming import IncrementalDecoder
from llm.tokenizers.base import Tokenizer


def complete_prompts(
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    prompts: Sequence[str],
    settings: GenerationSettings,
) -> list[str]:
    """Return the continuation of each prompt; see `first_tokens` and `stream_tokens`."""
    starts = [first_tokens(tokenizer, prompt) for prompt in prompts]
    texts = [""] * len(prompts)
    for row, piece in stream_tokens(model, tokenizer, prompts=starts, settings=settings):
        texts[row] += piece
    return texts


def stream_tokens(
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    memory: PrefixCache | None = None,
) -> Iterator[tuple[int, str]]:
    """Yield pieces of the continuations, each as soon as it is settled: (row of the prompt, text).

    A row ends at an end token of the tokenizer or of the settings, at a stop string, or after
    `settings.max_tokens`. Special tokens and stop strings are not part of the text.

    Args:
        model: a language model, see `Decoding`.
        tokenizer: the one that the model was trained with.
        prompts: tokens to continue, at least one per row.
        settings: length, sampling and stopping conditions.
        memory: see `Decoding`.

    Raises:
        ValueError: a prompt or a stop string is empty.
    """
    decoders = [IncrementalDecoder(tokenizer, tokens) for tokens in prompts]
    stops = [StopStrings(settings.stops) for _ in prompts]
    settings = replace(settings, end_tokens={*tokenizer.end_tokens, *settings.end_tokens})
    decoding = Decoding(model, prompts, settings=settings, memory=memory)
    for tokens in decoding:
        for row, token in tokens.items():
            # Two filters in turn: whole characters only, then nothing that may begin a stop string.
            if piece := stops[row].add(decoders[row].add(token)):
                yield row, piece
            if stops[row].stopped:
                decoding.end(row)
    for row, (decoder, stopping) in enumerate(zip(decoders, stops, strict=True)):
        if piece := stopping.add(decoder.close()) + stopping.close():
            yield row, piece


def first_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the tokens of a prompt, after those that its model expects before every text.

    An empty prompt begins a new document: it gets an end-of-text token if the model expects nothing.

    Raises:
        ValueError: the prompt is empty and the tokenizer has no such token.
    """
    before, _ = tokenizer.ends
    tokens = [*before, *tokenizer.encode(prompt)]
    if tokens:
        return tokens
    if tokenizer.end_of_text is None:
        raise ValueError(
            f"an empty prompt begins a new document, but the {tokenizer.kind} tokenizer has no "
            "end-of-text token; give a prompt of at least one character"
        )
    return [tokenizer.end_of_text]
