"""How prompts are continued on a terminal."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from llm.callbacks.samples import first_tokens
from llm.config.build import build
from llm.config.check import check
from llm.config.errors import ConfigError
from llm.generation.decoding import Decoding
from llm.generation.stopping import StopStrings
from llm.generation.streaming import IncrementalDecoder
from llm.hardware import Hardware
from llm.tokenizers.tokenizer import Tokenizer
from llm.weights.run import RunWeights


def write(config: DictConfig) -> list[str]:
    """Continue what a composed configuration of `llm generate` asks for, and print it as it is written.

    One prompt streams; several, from a file, are continued as one batch and printed one by one.

    Returns:
        The continuations, without their prompts.

    Raises:
        ConfigError: the configuration is wrong, the run is none, or a prompt cannot be encoded.
    """
    check(config)
    weights: RunWeights = build(config.weights)
    hardware: Hardware = build(config.hardware).resolve()
    tokenizer = weights.tokenizer()
    prompts = read_prompts(config.prompt, config.prompts_file)
    tokens = [_encode(tokenizer, prompt) for prompt in prompts]
    decoding = Decoding(
        weights.model().to(hardware.accelerator),
        tokens,
        max_tokens=config.max_tokens,
        sampler=build(config.sampler),
        seed=config.seed,
        end_token=tokenizer.end_of_text,
    )
    texts = [""] * len(prompts)
    streams = len(prompts) == 1
    if streams:
        _print(prompts[0])
    for row, piece in pieces(decoding, tokenizer, tokens, config.stop):
        texts[row] += piece
        if streams:
            _print(piece)
    if streams:
        _print("\n")
    else:
        for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True), start=1):
            _print(f"=== {number}\n{prompt}{text}\n")
    return texts


def read_prompts(prompt: str, file: str | None) -> list[str]:
    """The prompt, or those of a file, one a line; blank lines are passed over.

    Raises:
        ConfigError: both are given, or the file is missing or holds none.
    """
    if file is None:
        return [prompt]
    if prompt:
        raise ConfigError("prompt and prompts_file are both given: leave one out")
    if not Path(file).is_file():
        raise ConfigError(f"prompts_file: {file} does not exist")
    lines = [line for line in Path(file).read_text("utf-8").splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"prompts_file: {file} holds no prompt: write one a line")
    return lines


def _encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    try:
        return first_tokens(tokenizer, prompt)
    except ValueError as error:
        raise ConfigError(f"prompt: {error}") from error


def pieces(
    decoding: Decoding, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], stops: Sequence[str]
) -> Iterator[tuple[int, str]]:
    """Text of each row as it becomes certain: whole characters, and no beginning of a stop string."""
    decoders = [IncrementalDecoder(tokenizer, prompt) for prompt in prompts]
    filters = [StopStrings(list(stops)) for _ in prompts]
    for tokens in decoding:
        for row, token in tokens.items():
            yield row, filters[row].add(decoders[row].add(token))
            if filters[row].stopped:
                decoding.end(row)
    for row, (decoder, stop) in enumerate(zip(decoders, filters, strict=True)):
        yield row, stop.add(decoder.close()) + stop.close()


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
