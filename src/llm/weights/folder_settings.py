"""What a published folder says beside its architecture and weights: special tokens, chat template, generation.

Read as Hugging Face's library reads it, and written so that it reads the same again.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llm.files import read_object, read_utf8

CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
# Files that say how to use a model; what it computes does not depend on them.
SETTINGS_FILES = [GENERATION, SPECIAL_TOKENS, TEMPLATE]
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Of tokenizer_config.json, what does not describe how a text is split.
KEPT = (
    "extra_special_tokens",
    "additional_special_tokens",
    "model_max_length",
    "clean_up_tokenization_spaces",
    "model_input_names",
    "padding_side",
)
TEMPLATE_TARGET = "llm.data.examples.jinja_template.JinjaTemplate"
MOST_CHARACTERS = 2**18


@dataclass(frozen=True)
class FolderSettings:
    """A folder's own settings, as plain data.

    Args:
        ids: of the beginning, the end and the padding of a text, by the keys of config.json; an end may be
            several.
        generation: what generation_config.json holds; None if there is none.
        tokens: names of special tokens by their role, such as `eos_token`.
        tokenizer: what else tokenizer_config.json holds and is kept.
        chat_template: Jinja; None if the model is not made for conversations.
        dtype: the precision of the weights, such as `bfloat16`.

    Raises:
        ValueError: a value is of another type.
    """

    ids: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] | None = None
    tokens: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        for name, parts in (("ids", self.ids), ("generation", self.generation or {})):
            for key in IDS:
                if not _is_id(parts.get(key)):
                    raise ValueError(
                        f"{name}.{key}: {parts[key]!r} is not a token id, or a list of them"
                    )
        for role, token in self.tokens.items():
            if not isinstance(token, str) or "${" in token:
                raise ValueError(f"{role}: {token!r} is not the name of a token")
        if not isinstance(self.chat_template, str | None):
            raise ValueError("chat_template: is not a text")
        if self.chat_template is not None and len(self.chat_template) > MOST_CHARACTERS:
            raise ValueError(
                f"chat_template: {len(self.chat_template):,} characters are more than the "
                f"{MOST_CHARACTERS:,} that are read"
            )

    @property
    def end_ids(self) -> list[int]:
        """The tokens at which the model stops writing: generation_config.json goes before config.json."""
        found = (self.ids if self.generation is None else self.generation).get("eos_token_id")
        return [] if found is None else found if isinstance(found, list) else [found]

    @property
    def template(self) -> dict[str, Any] | None:
        """A configuration's node for the chat template; no piece of its source looks like a reference."""
        if self.chat_template is None:
            return None
        pieces = re.split(r"(?<=\n)|(?<=\$)(?=\{)", self.chat_template)
        return {"_target_": TEMPLATE_TARGET, "source": pieces, "tokens": dict(self.tokens)}

    def plain(self) -> dict[str, Any]:
        """The settings as a dictionary from which they can be made again."""
        return asdict(self)

    def speaking(self, jinja: str, end: int | None, *, name: str | None) -> "FolderSettings":
        """The same settings with a chat template, and the token that ends its answers first among the ends.

        Args:
            jinja: the template.
            end: the token that ends an answer; None if it is not one token.
            name: what it is called.
        """
        changed = replace(self, chat_template=jinja)
        if end is None or end in self.end_ids:
            return changed
        ends = {"eos_token_id": [end, *self.end_ids] if self.end_ids else end}
        return replace(
            changed,
            ids={**self.ids, **ends},
            generation={**(self.generation or self.ids), **ends},
            tokens={**self.tokens, "eos_token": name},
        )


def read_settings(folder: Path) -> FolderSettings:
    """The settings of a folder.

    Raises:
        ValueError: a file of it cannot be read, or holds a value of another type.
    """
    config = _optional(folder / CONFIG) or {}
    named = _optional(folder / TOKENIZER) or {}
    if "added_tokens_decoder" not in named:  # an older folder, in which the other file counts
        named = {**named, **(_optional(folder / SPECIAL_TOKENS) or {})}
    tokens = {
        key: _name(value)
        for key, value in named.items()
        if key.endswith("_token") and isinstance(value, str | dict)
    }
    try:
        return FolderSettings(
            ids={key: config[key] for key in IDS if key in config},
            generation=_optional(folder / GENERATION),
            tokens=tokens,
            tokenizer={key: named[key] for key in KEPT if key in named},
            chat_template=_chat_template(folder, named.get("chat_template")),
            dtype=config.get("dtype") or config.get("torch_dtype"),
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _optional(file: Path) -> dict[str, Any] | None:
    return read_object(file) if file.is_file() else None


def _name(token: str | dict[str, Any]) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _chat_template(folder: Path, named: Any) -> Any:
    """The template of its own file, or else of tokenizer_config.json, which may have several by name."""
    file = folder / TEMPLATE
    if file.is_file():
        return read_utf8(file, 4 * MOST_CHARACTERS)
    if isinstance(named, list):
        by_name = {
            each.get("name"): each.get("template") for each in named if isinstance(each, dict)
        }
        return by_name.get("default")
    return named.get("default") if isinstance(named, dict) else named


def _is_id(value: Any) -> bool:
    each = value if isinstance(value, list) else [value]
    return value is None or all(type(one) is int and one >= 0 for one in each)
