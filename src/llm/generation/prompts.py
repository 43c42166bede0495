"""The prompts of `llm generate`: reading and encoding."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from llm.config.errors import ConfigError
from llm.config.texts import one_or_several
from llm.data.errors import DataError
from llm.data.examples.template import ChatTemplate, Message
from llm.data.text_decoding import read_chunks, split_lines
from llm.generation.text_generation import first_tokens
from llm.tokenizers.base import Tokenizer


class EncodedPrompts(NamedTuple):
    """The tokens of prompts, and what ends their continuations.

    Attributes:
        starts: tokens of each prompt.
        end_tokens: tokens that end a response, besides those of the tokenizer.
        stops: texts that end a response.
    """

    starts: Sequence[Sequence[int]]
    end_tokens: Collection[int] = ()
    stops: Sequence[str] = ()


def encode_prompts(
    prompts: Sequence[str], tokenizer: Tokenizer, *, template: ChatTemplate | None
) -> EncodedPrompts:
    """Return the tokens of each prompt, in the template if there is one, and what ends a response."""
    if template is None:
        return EncodedPrompts([first_tokens(tokenizer, prompt) for prompt in prompts])
    conversations = ([Message("user", prompt)] for prompt in prompts)
    starts = [template.encode_prompt(messages, tokenizer) for messages in conversations]
    end = template.end_token(tokenizer)
    return EncodedPrompts(starts, () if end is None else (end,), template.stops)


def stops_have_text(config: Mapping[str, Any]) -> Iterator[str]:
    """Refuse an empty stop text, which is part of every text."""
    stop = config.get("stop")
    if stop == "" or (isinstance(stop, list) and "" in stop):
        yield "stop: one of the texts is empty; give at least one character, or leave it out"


def prompts_have_one_source(config: Mapping[str, Any]) -> Iterator[str]:
    """Require prompts, or an existing file of prompts, and not both."""
    prompt, file = config.get("prompt"), config.get("prompts_file")
    if file is None and prompt == []:
        yield "prompt: [] has no prompts; leave it out to begin a document"
    if not isinstance(file, str) or not file.strip():  # another rule reports it
        return
    if prompt:
        yield "prompt, prompts_file: both are given; leave one out"
    with suppress(OSError):  # not a path: another rule reports it
        if Path(file).is_dir():
            yield f"prompts_file: {file} is a folder; name a file with one prompt a line"
        elif not Path(file).exists():
            yield f"prompts_file: {file} does not exist; name a file with one prompt a line"


def read_prompts(prompt: str | Sequence[str], file: str | None) -> list[str]:
    """Return the prompts given, or those of a file: one per line, without blank lines.

    Raises:
        ConfigError: the file has no prompt.
    """
    if file is None:
        return one_or_several(prompt)
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
