"""How prompts are continued on a terminal."""

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from llm.apps.loading import (
    autocast,
    load_writer,
    open_weights,
    stop_strings,
    tell_of_cut,
    use_hardware,
)
from llm.config.build import build, mistakes_at
from llm.config.check import check
from llm.config.errors import ConfigError
from llm.console import printable
from llm.data.decoding import chunks, lines
from llm.data.errors import DataError
from llm.generation.text import first_tokens, stream_tokens


def write(config: DictConfig) -> list[str]:
    """Continue what a composed configuration of `llm generate` asks for, and print it as it is written.

    One prompt streams; several, from a list or a file, are continued as one batch and printed one by one.

    Returns:
        The continuations, without their prompts.

    Raises:
        ConfigError: the configuration is wrong, the run is none, or a prompt cannot be encoded.
    """
    check(config)
    weights, hardware = open_weights(config), use_hardware(config)
    prompts = read_prompts(config.prompt, config.prompts_file)
    tokenizer = weights.tokenizer()
    with mistakes_at("prompt"):
        starts = [first_tokens(tokenizer, prompt) for prompt in prompts]
    model = load_writer(weights, hardware)
    tell_of_cut(model, starts, key="prompt" if config.prompts_file is None else "prompts_file")
    pieces = stream_tokens(
        model,
        tokenizer,
        starts,
        config.max_tokens,
        build(config.sampler),
        config.seed,
        stop_strings(config),
    )
    texts = [""] * len(prompts)
    with mistakes_at("weights"), autocast(hardware):
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


def read_prompts(prompt: str | Sequence[str], file: str | None) -> list[str]:
    """The prompt, several of a list, or those of a file, one a line; blank lines are passed over.

    Raises:
        ConfigError: both are given, or the list is empty, or the file is missing or holds none.
    """
    if file is None and not isinstance(prompt, str) and not prompt:
        raise ConfigError("prompt: [] is a list of no prompts; leave it out to begin a document")
    if file is None:
        return [prompt] if isinstance(prompt, str) else list(prompt)
    if prompt:
        raise ConfigError("prompt and prompts_file are both given: leave one out")
    place = Path(file).expanduser()
    if place.is_dir():
        raise ConfigError(f"prompts_file: {file} is a folder; name a file with one prompt a line")
    if not place.exists():
        raise ConfigError(f"prompts_file: {file} does not exist")
    prompts = [line.removesuffix("\r") for line in _lines(place) if line.strip()]
    if not prompts:
        raise ConfigError(f"prompts_file: {file} holds no prompt: write one a line")
    return prompts


def _lines(file: Path) -> list[str]:
    """The lines of a file, which only line feeds end: a form feed or U+2028 is part of a prompt.

    Raises:
        ConfigError: the file is not text in UTF-8, or behind a byte-order mark.
    """
    save_it = "save it as UTF-8, or with a byte-order mark"
    invalid: list[int] = []
    try:
        text = chunks(file, count=invalid.append, way_out=save_it, translate=False)
        found = list(lines(text))
    except DataError as error:
        raise ConfigError(f"prompts_file: {error}") from None
    if sum(invalid):
        raise ConfigError(f"prompts_file: {file}: {sum(invalid):,} bytes are not UTF-8; {save_it}")
    return found


def _print(text: str) -> None:
    sys.stdout.write(printable(text))
    sys.stdout.flush()
