"""What writing begins with, one continuation or the best of several: prompts, and a model that is ready for them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from llm.config.build import config_errors_at
from llm.config.errors import ConfigError
from llm.data.errors import DataError
from llm.data.text_decoding import chunks, decoded_lines
from llm.generation.model_loading import (
    load_language_model,
    require_trained,
    stop_strings,
    tell_of_cut,
    use_hardware,
)
from llm.hardware import Hardware
from llm.tokenizers.base import Tokenizer
from llm.weights.base import Weights


class Openings(NamedTuple):
    """The tokens that the texts begin with, and what ends them.

    Attributes:
        starts: the tokens of each prompt.
        end_token: ends an answer, beside those of the tokenizer.
        stops: texts that end an answer.
    """

    starts: Sequence[Sequence[int]]
    end_token: int | None = None
    stops: Sequence[str] = ()


class Prepared(NamedTuple):
    """All that writing takes.

    Attributes:
        model: a model that writes, where it computes.
        tokenizer: its tokenizer.
        hardware: where it computes.
        prompts: as they were given.
        openings: what is written behind; its `stops` are those of the configuration too.
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
        openings = begin(weights, tokenizer, prompts)
    openings = openings._replace(stops=[*openings.stops, *stops])
    model = load_language_model(weights, hardware)
    tell_of_cut(model, openings.starts, key=key)
    return Prepared(model, tokenizer, hardware, prompts, openings)


def read_prompts(prompt: str | Sequence[str], file: str | None) -> list[str]:
    """The prompt, several of a list, or those of a file, one a line; blank lines are skipped.

    Raises:
        ConfigError: both are given, or the list is empty, or the file is missing or holds none.
    """
    if file is None and not isinstance(prompt, str) and not prompt:
        raise ConfigError("prompt: [] holds no prompts; leave it out to begin a document")
    if file is None:
        return [prompt] if isinstance(prompt, str) else list(prompt)
    if prompt:
        raise ConfigError("prompt, prompts_file: both are given; leave one out")
    place = Path(file)
    if place.is_dir():
        raise ConfigError(f"prompts_file: {file} is a folder; name a file with one prompt a line")
    if not place.exists():
        raise ConfigError(
            f"prompts_file: {file} does not exist; name a file with one prompt a line"
        )
    prompts = [line.removesuffix("\r") for line in _lines(place) if line.strip()]
    if not prompts:
        raise ConfigError(f"prompts_file: {file} holds no prompts; write one a line")
    return prompts


def _lines(file: Path) -> list[str]:
    """The lines of a file, which only line feeds end: a form feed or U+2028 is part of a prompt.

    Raises:
        ConfigError: the file is not text in UTF-8, or behind a byte-order mark.
    """
    save_it = "save it as UTF-8, or with a byte-order mark"
    instead = "name a text file with one prompt a line"
    invalid: list[int] = []
    try:
        text = chunks(file, count=invalid.append, way_out=save_it, instead=instead, translate=False)
        found = list(decoded_lines(text))
    except DataError as error:
        raise ConfigError(f"prompts_file: {error}") from None
    if sum(invalid):
        raise ConfigError(f"prompts_file: {file}: {sum(invalid):,} bytes are not UTF-8; {save_it}")
    return found
