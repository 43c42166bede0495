"""Preparation of text generation: read the prompts, load the model and encode the prompts."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from llm.config.build import config_errors_at
from llm.config.errors import ConfigError
from llm.data.errors import DataError
from llm.data.text_decoding import read_chunks, split_lines
from llm.generation.model_loading import (
    load_language_model,
    report_truncation,
    require_trained,
    stop_strings,
    use_hardware,
)
from llm.hardware import Hardware
from llm.tokenizers.base import Tokenizer
from llm.weights.base import Weights


class Openings(NamedTuple):
    """The tokens of the prompts, and what ends their continuations.

    Attributes:
        starts: tokens of each prompt.
        end_tokens: tokens that end an answer, beside those of the tokenizer.
        stops: texts that end an answer.
    """

    starts: Sequence[Sequence[int]]
    end_tokens: Collection[int] = ()
    stops: Sequence[str] = ()


class Prepared(NamedTuple):
    """Everything that generation needs.

    Attributes:
        model: a language model on its device.
        tokenizer: its tokenizer.
        hardware: the hardware that it runs on.
        prompts: the prompts as text.
        openings: the encoded prompts; `stops` includes those of the configuration.
    """

    model: nn.Module
    tokenizer: Tokenizer
    hardware: Hardware
    prompts: Sequence[str]
    openings: Openings


def prepare_prompts(
    begin: Callable[[Weights, Tokenizer, Sequence[str]], Openings],
    *,
    weights: Weights | None,
    hardware: Hardware,
    prompt: str | Sequence[str],
    prompts_file: str | None,
    stop: str | Sequence[str],
) -> Prepared:
    """Read the prompts and load the model that continues them.

    Args:
        begin: turns prompts into tokens; called before the model is loaded.
        weights: of the model.
        hardware: as it was composed.
        prompt: one, or several.
        prompts_file: a file with one prompt in each line; None for `prompt`.
        stop: the texts at which writing ends.

    Raises:
        ConfigError: the weights are none, or a prompt cannot be encoded.
    """
    weights, hardware = require_trained(weights), use_hardware(hardware)
    prompts = read_prompts(prompt, prompts_file)
    tokenizer, stops = weights.tokenizer(), stop_strings(stop)
    key = "prompt" if prompts_file is None else "prompts_file"
    with config_errors_at(key):
        # Before the model is loaded, which takes long: a prompt that cannot be encoded fails at once.
        openings = begin(weights, tokenizer, prompts)
    openings = openings._replace(stops=[*openings.stops, *stops])
    model = load_language_model(weights, hardware)
    report_truncation(model, openings.starts, key=key)
    return Prepared(model, tokenizer, hardware, prompts, openings)


def prompts_have_one_source(config: Mapping[str, Any]) -> Iterator[str]:
    """Require prompts, or an existing file of prompts, and not both."""
    prompt, file = config.get("prompt"), config.get("prompts_file")
    if file is None and prompt == []:
        yield "prompt: [] has no prompts; leave it out to begin a document"
    if not isinstance(file, str) or not file.strip():  # reported as a wrong type or an empty name
        return
    if prompt:
        yield "prompt, prompts_file: both are given; leave one out"
    with suppress(OSError):  # not a path: another rule reports it
        if Path(file).is_dir():
            yield f"prompts_file: {file} is a folder; name a file with one prompt a line"
        elif not Path(file).exists():
            yield f"prompts_file: {file} does not exist; name a file with one prompt a line"


def read_prompts(prompt: str | Sequence[str], file: str | None) -> list[str]:
    """Return the prompt, a list of prompts, or those of a file, one per line; blank lines are skipped.

    Raises:
        ConfigError: the file has no prompt.
    """
    if file is None:
        return [prompt] if isinstance(prompt, str) else list(prompt)
    prompts = [line.removesuffix("\r") for line in _lines(Path(file)) if line.strip()]
    if not prompts:
        raise ConfigError(f"prompts_file: {file} has no prompts; write one a line")
    return prompts


def _lines(file: Path) -> list[str]:
    """Return the lines of a file, split at line feeds only: a form feed or U+2028 is part of a prompt.

    Raises:
        ConfigError: the file is not UTF-8 and has no byte-order mark.
    """
    save_it = "save it as UTF-8, or with a byte-order mark"
    advice = "name a text file with one prompt a line"
    invalid: list[int] = []
    try:
        text = read_chunks(
            file, count=invalid.append, nul_advice=save_it, advice=advice, translate=False
        )
        found = list(split_lines(text))
    except DataError as error:
        raise ConfigError(f"prompts_file: {error}") from None
    if sum(invalid):
        raise ConfigError(f"prompts_file: {file}: {sum(invalid):,} bytes are not UTF-8; {save_it}")
    return found
