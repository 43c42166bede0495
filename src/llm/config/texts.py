"""Words of a command line whose values are a person's own text: names, paths, prompts.

Hydra reads a value by a grammar in which commas, colons, quotes and brackets mean something, and 1e5 is a
number. A text is taken as it was typed, whatever is in it. Written on the command line it ends up quoted, once,
and from then on nobody reads it again.
"""

import os
import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llm.config.overrides import escaped_text, is_quoted, key_of

# Files and folders; `\\,` is a comma in them, for in a sweep a plain one separates values.
PATHS = {
    *("weights.path", "weights.base", "reward.path", "data.path", "data.validation_path"),
    *("data.test_path", "data.cache_dir", "against", "output", "output_dir", "file", "test_path"),
    "prompts_file",
}
# What is said to a model or looked for in its answers: never several values.
SAID = {"prompt", "stop", "system", "text", "reward.text", "reward.pattern"}
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
TEXTS = PATHS | SAID | NAMES
# Texts in which a backslash with n or t is a line feed or a tab.
ESCAPED = {
    *("stop", "data.delimiter", "rows.delimiter", "files.delimiter"),
    *("data.document_separator", "files.document_separator"),
}
# Keys that take a list of texts as well, in brackets.
LISTS = {"prompt", "stop", "data.path", "data.validation_path", "data.test_path"}
# Keys that cannot be null: the word is a text in them.
NEVER_NULL = {"prompt", "stop", "text"}
# What stands between two commas: a text in quotes, or anything with commas escaped.
PIECE = re.compile(
    r"""(?:^|,)(\s*"(?:\\.|[^"\\])*"\s*(?=,|$)|\s*'(?:\\.|[^'\\])*'\s*(?=,|$)|(?:\\.|[^,])*)""",
    re.DOTALL,
)
ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def expand_homes(config: DictConfig) -> None:
    """Write the home folder in place of a leading `~` or `~name` of every path: behind `=` shells leave it.

    Args:
        config: the composed tree; what refers to other keys stays.
    """
    plain: Any = OmegaConf.to_container(config, resolve=False)
    for key in sorted({*PATHS, "runs"}):
        value = plain
        for word in key.split("."):
            value = value.get(word) if isinstance(value, dict) else None
        expanded = _expanded(value)
        if expanded != value:
            OmegaConf.update(config, key, expanded, merge=False)


def _expanded(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111


def as_text(word: str, *, is_sweep: bool = False) -> str:
    """A word of a command line, its value quoted for Hydra's grammar if its key is a text's.

    What is quoted already stays.

    Args:
        word: as typed.
        is_sweep: whether commas separate several values, of a path or a name.
    """
    left, equals, value = word.partition("=")
    key = key_of(word)
    if not equals or key not in TEXTS or left.startswith("~") or is_quoted(value):
        return word
    if key in LISTS and (items := _items(value)) is not None:
        return f"{left}=[{','.join(_quoted(key, item) for item in items)}]"
    if not is_sweep or key in SAID:
        return f"{left}={_quoted(key, value)}"
    if _is_function(value):
        return word
    values = split_at_commas(value)
    values = [each.strip() for each in values] if len(values) > 1 else values
    return f"{left}={','.join(_quoted(key, each) for each in values)}"


def quoted_text(text: str) -> str:
    """A text that Hydra's grammar and OmegaConf's interpolations give back as it stands."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(escaped_text(text), Quote.double).with_quotes()


def _quoted(key: str, text: str) -> str:
    """One text, as it is meant in this key."""
    if is_quoted(text) or (text == "null" and key not in NEVER_NULL):
        return text
    if key in ESCAPED:
        text = re.sub(r"\\([nt\\])", lambda found: ESCAPES[found[1]], text)
    elif key in PATHS:
        text = text.replace("\\,", ",")
    return quoted_text(text)


def split_at_commas(text: str) -> list[str]:
    """The parts between commas that are neither in a quoted part nor escaped."""
    return PIECE.findall(text)


def _items(value: str) -> list[str] | None:
    """The texts of a list in brackets; None where it is no such list."""
    parsed = _parsed(value) if value.startswith("[") and value.endswith("]") else None
    if parsed is None or not isinstance(parsed.value(), list):
        return None
    items = [item.strip() for item in split_at_commas(value[1:-1])] if value[1:-1].strip() else []
    is_flat = all(isinstance(item, str | int | float | bool | None) for item in parsed.value())
    return items if is_flat and len(items) == len(parsed.value()) else None


def _is_function(value: str) -> bool:
    """Whether a value is one of the grammar's own ways to name several, such as choice(a,b)."""
    from hydra.core.override_parser.types import ValueType

    parsed = _parsed(value)
    return (
        parsed is not None
        and parsed.is_sweep_override()
        and parsed.value_type != ValueType.SIMPLE_CHOICE_SWEEP
    )


def _parsed(value: str) -> Any:
    """A value as Hydra's grammar reads it; None where it cannot."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"x={value}")
    except HydraException:
        return None
