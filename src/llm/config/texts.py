"""Overrides whose values are free text: names, paths and prompts.

In Hydra's grammar, commas, colons, quotes and brackets have a meaning, and 1e5 is a number. The values of the keys
listed here are quoted before Hydra parses them, so that they stay as typed.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from llm.config.overrides import escaped_text, is_quoted, key_of
from llm.config.plain import value_at

# Files and folders. `\\,` is a comma in them, because in a sweep a plain comma separates values.
PATHS = {
    *("weights.path", "weights.base", "reward.path", "data.path", "data.validation_path"),
    *("data.test_path", "against", "output", "output_dir", "file", "test_path"),
    "prompts_file",
}
# Prompts, and patterns to search in responses: never several values.
PROMPTS = {"prompt", "stop", "system", "text", "reward.text", "reward.pattern"}
NAMES = {
    *(
        "name",
        "data.text",
        "data.label",
        "data.text_field",
        "data.delimiter",
        "rows.text",
        "rows.delimiter",
        "files.text_field",
        "files.delimiter",
        "files.document_separator",
        "judge.model",
    ),
    *("judge.address", "data.document_separator", "logger.wandb.project", "logger.wandb.group"),
}
TEXTS = PATHS | PROMPTS | NAMES
# Texts in which \n and \t are a line feed and a tab.
ESCAPED = {
    *("stop", "data.delimiter", "rows.delimiter", "files.delimiter"),
    *("data.document_separator", "files.document_separator"),
}
# Keys that also accept a list in brackets.
LISTS = {"prompt", "stop", "data.path", "data.validation_path", "data.test_path"}
# Keys that cannot be null: `null` is a text.
NEVER_NULL = {"prompt", "stop", "text"}
# A value between two commas: a quoted text, or a text whose commas are escaped.
PIECE = re.compile(
    r"""(?:^|,)(\s*"(?:\\.|[^"\\])*"\s*(?=,|$)|\s*'(?:\\.|[^'\\])*'\s*(?=,|$)|(?:\\.|[^,])*)""",
    re.DOTALL,
)
ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def expand_homes(config: DictConfig) -> None:
    """Expand a leading `~` or `~name` in every path, because shells do not expand it after `=`."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    for key in sorted({*PATHS, "runs"}):
        value = value_at(plain, key)
        expanded = _expanded(value)
        if expanded != value:
            OmegaConf.update(config, key, expanded, merge=False)


def _expanded(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111


def one_or_several(texts: str | Sequence[str]) -> list[str]:
    """Return one text, or several, as a list."""
    return [texts] if isinstance(texts, str) else list(texts)


def as_text(word: str, *, is_sweep: bool = False) -> str:
    """Return a word of a command line with its value quoted for Hydra's grammar, if its key is listed here.

    Args:
        word: the word as typed.
        is_sweep: whether commas separate several values of a path or a name.
    """
    left, equals, value = word.partition("=")
    key = key_of(word)
    if not equals or key not in TEXTS or left.startswith("~") or is_quoted(value):
        return word
    if key in LISTS and (items := _items(value)) is not None:
        return f"{left}=[{','.join(_quoted(key, item) for item in items)}]"
    if not is_sweep or key in PROMPTS:
        return f"{left}={_quoted(key, value)}"
    if _is_function(value):
        return word
    values = split_at_commas(value)
    values = [each.strip() for each in values] if len(values) > 1 else values
    return f"{left}={','.join(_quoted(key, each) for each in values)}"


def quoted_text(text: str) -> str:
    """Return a text quoted so that Hydra and OmegaConf parse it to exactly this text."""
    return QuotedString(escaped_text(text), Quote.double).with_quotes()


def _quoted(key: str, text: str) -> str:
    """Return a text quoted, with the escapes of its key applied."""
    if is_quoted(text) or (text == "null" and key not in NEVER_NULL):
        return text
    if key in ESCAPED:
        text = re.sub(r"\\([nt\\])", lambda found: ESCAPES[found[1]], text)
    elif key in PATHS:
        text = text.replace("\\,", ",")
    return quoted_text(text)


def split_at_commas(text: str) -> list[str]:
    """Split a text at commas that are neither quoted nor escaped."""
    return PIECE.findall(text)


def _items(value: str) -> list[str] | None:
    """Return the texts of a flat list in brackets; None if the value is not one."""
    parsed = _parsed(value) if value.startswith("[") and value.endswith("]") else None
    if parsed is None or not isinstance(parsed.value(), list):
        return None
    items = [item.strip() for item in split_at_commas(value[1:-1])] if value[1:-1].strip() else []
    is_flat = all(isinstance(item, str | int | float | bool | None) for item in parsed.value())
    return items if is_flat and len(items) == len(parsed.value()) else None


def _is_function(value: str) -> bool:
    """Return whether a value is a sweep function of Hydra's grammar, such as choice(a,b)."""
    parsed = _parsed(value)
    return (
        parsed is not None
        and parsed.is_sweep_override()
        and parsed.value_type != ValueType.SIMPLE_CHOICE_SWEEP
    )


def _parsed(value: str) -> Any:
    """Return a value as parsed by Hydra's grammar; None if it cannot be parsed."""
    try:
        return OverridesParser.create().parse_override(f"x={value}")
    except HydraException:
        return None
