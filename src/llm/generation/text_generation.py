"""From text to text: prompts in, pieces of their continuations out."""

from collections.abc import Collection, Iterator, Sequence

from torch import nn

from llm.generation.decoding import Decoding
from llm.generation.prefix_cache import PrefixCache
from llm.generation.sampling import Sampler
from llm.generation.stopping import StopStrings
from llm.generation.streaming import IncrementalDecoder
from llm.tokenizers.base import Tokenizer


def complete_prompts(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_tokens: int,
    sampler: Sampler,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> list[str]:
    """The continuation of each prompt; the arguments and errors are those of `stream`."""
    texts = [""] * len(prompts)
    for row, piece in stream(model, tokenizer, prompts, max_tokens, sampler, seed, stop):
        texts[row] += piece
    return texts


def stream(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_tokens: int,
    sampler: Sampler,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> Iterator[tuple[int, str]]:
    """Pieces of the continuations, each as soon as it is certain: (row of the prompt, text).

    A row ends at one of the tokenizer's end tokens, at a stop string, neither of which is part of
    the text, or after `max_tokens`. Other special tokens are no part of the text either.

    Args:
        model: a language model, see `Decoding`.
        tokenizer: the one that the model was trained with.
        prompts: texts to continue; an empty one begins a new document.
        max_tokens: most tokens to add to a prompt.
        sampler: chooses a token from the logits.
        seed: of the first row; the others follow.
        stop: texts at which to end.

    Raises:
        ValueError: a setting out of its range, or an empty prompt with a tokenizer that has no
            token to begin a document.
    """
    starts = [first_tokens(tokenizer, prompt) for prompt in prompts]
    yield from stream_tokens(model, tokenizer, starts, max_tokens, sampler, seed, stop)


def stream_tokens(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampler: Sampler,
    seed: int = 0,
    stop: Sequence[str] = (),
    end_tokens: Collection[int] = (),
    memory: PrefixCache | None = None,
) -> Iterator[tuple[int, str]]:
    """As `stream`, for prompts that are tokens already, at least one a row.

    A row ends at each of `end_tokens` too, such as the one that ends an answer. `memory` is as for `Decoding`.
    """
    ends = {*tokenizer.end_tokens, *end_tokens}
    decoders = [IncrementalDecoder(tokenizer, tokens) for tokens in prompts]
    stops = [StopStrings(stop) for _ in prompts]
    decoding = Decoding(
        model, prompts, max_tokens, sampler, seed, tokenizer.end_of_text, memory=memory
    )
    for tokens in decoding:
        for row, token in tokens.items():
            if token in ends:
                decoding.end(row)
            elif piece := stops[row].add(decoders[row].add(token)):
                yield row, piece
            if stops[row].stopped:
                decoding.end(row)
    for row, (decoder, stopping) in enumerate(zip(decoders, stops, strict=True)):
        if piece := stopping.add(decoder.close()) + stopping.close():
            yield row, piece


def first_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt's tokens, behind what its model expects before every text.

    An empty prompt begins a new document: where nothing else is expected, behind the end of one.

    Raises:
        ValueError: an empty prompt, and no such token.
    """
    before, _ = tokenizer.ends
    tokens = [*before, *tokenizer.encode(prompt)]
    if tokens:
        return tokens
    if tokenizer.end_of_text is None:
        raise ValueError(
            f"an empty prompt begins a new document, and the {tokenizer.kind} tokenizer has no "
            "end-of-text token to begin one with: give a prompt of at least one character"
        )
    return [tokenizer.end_of_text]
