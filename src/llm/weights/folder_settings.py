"""Settings of a published folder: special tokens, chat template, generation, as Hugging Face's library reads them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from llm.files import read_object, read_utf8

CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
# Files that do not change what a model computes.
SETTINGS_FILES = [GENERATION, SPECIAL_TOKENS, TEMPLATE]
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Keys of tokenizer_config.json that do not change how a text is split.
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
    """The settings of a folder, as plain data.

    Args:
        ids: ids of the tokens for the beginning, the end (or a list of ends) and the padding of a text, by the keys
            of config.json.
        generation: content of generation_config.json; None if there is none.
        tokens: names of special tokens by role, such as `eos_token`.
        tokenizer: the keys `KEPT` of tokenizer_config.json.
        chat_template: a Jinja template, if the model is for conversations.
        dtype: dtype of the weights, such as `bfloat16`.

    Raises:
        ValueError: a value has a wrong type.
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
                        f"{name}.{key}: {parts[key]!r} is not a token id or a list of token ids"
                    )
        for role, token in self.tokens.items():
            if not isinstance(token, str) or "${" in token:
                raise ValueError(f"{role}: {token!r} is not the name of a token")
        if not isinstance(self.chat_template, str | None):
            raise ValueError("chat_template: is not a string")
        if self.chat_template is not None and len(self.chat_template) > MOST_CHARACTERS:
            raise ValueError(
                f"chat_template: has {len(self.chat_template):,} characters, more than the {MOST_CHARACTERS:,} allowed"
            )

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end a text; generation_config.json has precedence over config.json."""
        found = (self.ids if self.generation is None else self.generation).get("eos_token_id")
        return [] if found is None else found if isinstance(found, list) else [found]

    @property
    def template(self) -> dict[str, Any] | None:
        """The chat template as a node of a configuration, split because OmegaConf would interpolate a `${`."""
        if self.chat_template is None:
            return None
        pieces = re.split(r"(?<=\n)|(?<=\$)(?=\{)", self.chat_template)
        return {"_target_": TEMPLATE_TARGET, "source": pieces, "tokens": dict(self.tokens)}

    def with_chat_template(
        self, jinja: str, end: int | None, *, name: str | None
    ) -> "FolderSettings":
        """Return the settings with a chat template and with the end of a response as the first end.

        Args:
            jinja: the template.
            end: the token that ends a response; None if the end is not one token.
            name: the name of that token.
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
    """Return the settings of a folder.

    Raises:
        ValueError: a file cannot be read, or a value has a wrong type.
    """
    config = _optional(folder / CONFIG) or {}
    named = _optional(folder / TOKENIZER) or {}
    # In older folders, special_tokens_map.json has precedence.
    if "added_tokens_decoder" not in named:
        named = {**named, **(_optional(folder / SPECIAL_TOKENS) or {})}
    tokens = {
        key: cast(str, value.get("content") if isinstance(value, dict) else value)
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


def _chat_template(folder: Path, named: Any) -> Any:
    """Return the template of chat_template.jinja or of tokenizer_config.json, which may have several by name."""
    file = folder / TEMPLATE
    if file.is_file():
        return read_utf8(file, 4 * MOST_CHARACTERS)
    if isinstance(named, list):
        named = {each.get("name"): each.get("template") for each in named if isinstance(each, dict)}
    return named.get("default") if isinstance(named, dict) else named


def _is_id(value: Any) -> bool:
    each = value if isinstance(value, list) else [value]
    return value is None or all(type(one) is int and one >= 0 for one in each)
