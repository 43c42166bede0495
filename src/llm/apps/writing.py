"""How prompts are continued on a terminal."""

import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from llm.apps.loading import autocast
from llm.apps.prompting import Openings, prepare
from llm.config.build import build
from llm.console import printable
from llm.generation.text import first_tokens, stream_tokens
from llm.tokenizers.tokenizer import Tokenizer
from llm.weights.weights import Weights


def write(config: DictConfig) -> list[str]:
    """Continue what a composed configuration of `llm generate` asks for, and print it as it is written.

    One prompt streams; several, from a list or a file, are continued as one batch and printed one by one.

    Returns:
        The continuations, without their prompts.

    Raises:
        ConfigError: the configuration is wrong, the run is none, or a prompt cannot be encoded.
    """
    model, tokenizer, hardware, prompts, openings = prepare(config, as_they_stand)
    pieces = stream_tokens(
        model,
        tokenizer,
        openings.starts,
        config.max_tokens,
        build(config.sampler),
        config.seed,
        openings.stops,
    )
    texts = [""] * len(prompts)
    with autocast(hardware):
        for row, piece in pieces:
            if len(prompts) == 1:
                _print(piece if texts[row] else prompts[row] + piece)
            texts[row] += piece
    if len(prompts) == 1:
        _print("\n" if texts[0] else prompts[0] + "\n")
    else:
        for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True), start=1):
            _print(f"=== {number}\n{prompt}{text}\n")
    return texts


def as_they_stand(weights: Weights, tokenizer: Tokenizer, prompts: Sequence[str]) -> Openings:
    """The prompts' own tokens, which the model continues."""
    return Openings([first_tokens(tokenizer, prompt) for prompt in prompts])


def _print(text: str) -> None:
    sys.stdout.write(printable(text))
    sys.stdout.flush()
