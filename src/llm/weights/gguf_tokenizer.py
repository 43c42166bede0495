"""Tokenizers in GGUF files, in both directions: byte-pair encoding with the pieces of a known model.

A file has the tokens, their types, the merges, and the name of the rule that cuts a text into pieces, see
`piece_rules.py`.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm.config.build import config_errors_at
from llm.config.errors import ConfigError
from llm.files import write_json
from llm.tokenizers.base import Tokenizer
from llm.tokenizers.huggingface import MOST_IDS
from llm.weights.folder_settings import FolderSettings
from llm.weights.piece_rules import (
    BYTES,
    QWEN2_RULES,
    RULES,
    WHOLE_FIRST,
    no_counterpart,
    piece_rule,
)
from llm.weights.tokenizer_files import BPE_MODEL, as_huggingface, read_tokenizer

Values = dict[str, Any]
Definition = dict[str, Any]

# Types of tokens.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
MODEL, PIECES = "tokenizer.ggml.model", "tokenizer.ggml.pre"
TOKENS, TYPES, MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges"))
BEGINS, ENDS = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"
TEMPLATE = "tokenizer.chat_template"
BEGIN, PADDING = "tokenizer.ggml.bos_token_id", "tokenizer.ggml.padding_token_id"
# Tokens that end a generation: the end of a text, of a turn and of a message.
END_KEYS = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]


def describe_tokenizer(
    tokenizer: Tokenizer, settings: FolderSettings, *, vocab_size: int
) -> Values:
    """Return the values for a tokenizer, its special tokens and the chat template.

    Args:
        tokenizer: the tokenizer.
        settings: the special tokens and the chat template.
        vocab_size: number of the model's embeddings; those without a token become unused tokens.

    Raises:
        ValueError: llama.cpp has no such tokenizer.
    """
    if tokenizer.kind == "char":
        raise ValueError(no_counterpart("a tokenizer of characters"))
    definition = json.loads(as_huggingface(tokenizer).to_str())
    rule = piece_rule(definition)
    tokens = _tokens_of(definition)
    if max(tokens) >= vocab_size:
        raise ValueError(
            f"the tokenizer has the id {max(tokens)}, but the model {vocab_size} embeddings"
        )
    padded = [tokens.get(token, (f"[PAD{token}]", UNUSED)) for token in range(vocab_size)]
    names = [name for name, _ in padded]
    if len({*names}) < len(names):
        raise ValueError(
            "the tokenizer has two tokens of one name, which llama.cpp cannot tell apart"
        )
    values: Values = {
        MODEL: "gpt2",
        PIECES: rule,
        TOKENS: names,
        TYPES: [kind for _, kind in padded],
        MERGES: _merges_of(definition) or [_impossible_merge(names)],
        **_special_tokens(tokenizer, settings),
    }
    if settings.chat_template is not None:
        values[TEMPLATE] = settings.chat_template
    return values


def _tokens_of(definition: Definition) -> dict[int, tuple[str, int]]:
    """Return the name and type of each token, by its id."""
    tokens = {token: (name, NORMAL) for name, token in definition["model"]["vocab"].items()}
    for added in definition.get("added_tokens") or []:
        if any(added.get(key) for key in ("lstrip", "rstrip", "single_word")):
            raise ValueError(
                f"the token {added['content']!r} also matches the white space around it, which llama.cpp does not"
            )
        kind = CONTROL if added["special"] else USER_DEFINED
        tokens[added["id"]] = (added["content"], kind)
    return tokens


def _merges_of(definition: Definition) -> list[str]:
    merges = definition["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _impossible_merge(names: list[str]) -> str:
    """Return a merge that never applies, because llama.cpp does not load a vocabulary without merges.

    Its halves are not characters of the vocabulary, and no merge makes them.
    """
    return f"{names[-1]} {names[-1]}"


def _special_tokens(tokenizer: Tokenizer, settings: FolderSettings) -> Values:
    before, after = tokenizer.ends
    ends = settings.end_ids
    begin = before[0] if before else settings.ids.get("bos_token_id")
    if len(before) > 1 or len(after) > 1 or (after and after != ends[:1]):
        raise ValueError("the tokenizer adds several tokens to a text, llama.cpp one at each end")
    if len(ends) > len(END_KEYS):
        raise ValueError(f"the model has {len(ends)} tokens that end a text, a GGUF file at most 3")
    values = dict(zip(END_KEYS, ends, strict=False))
    padding = settings.ids.get("pad_token_id")
    values |= {} if begin is None else {BEGIN: begin}
    values |= {} if padding is None else {PADDING: padding}
    return {**values, BEGINS: bool(before), ENDS: bool(after)}


def read_token_settings(values: Mapping[str, Any]) -> FolderSettings:
    """Return the special tokens and the chat template of a file.

    Raises:
        ValueError: a value has a wrong type.
    """
    ids = {
        key: values.get(name) for key, name in (("bos_token_id", BEGIN), ("pad_token_id", PADDING))
    }
    ids = {key: token for key, token in ids.items() if token is not None}
    ends = list(dict.fromkeys(values[key] for key in END_KEYS if key in values))
    if ends:
        ids["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    names = values.get(TOKENS)
    names = names if isinstance(names, list) else []
    roles = {"bos_token": ids.get("bos_token_id"), "pad_token": ids.get("pad_token_id")}
    roles["eos_token"] = ends[0] if ends else None
    tokens = {
        role: names[token]
        for role, token in roles.items()
        if isinstance(token, int) and 0 <= token < len(names)
    }
    return FolderSettings(ids=ids, tokens=tokens, chat_template=values.get(TEMPLATE))


def read_gguf_tokenizer(values: Mapping[str, Any], settings: FolderSettings) -> Tokenizer | None:
    """Return the tokenizer of a file; None if it has none.

    Raises:
        ConfigError: the tokenizer is of another kind, or is damaged.
    """
    if MODEL not in values:
        return None
    model, rule = values[MODEL], values.get(PIECES)
    if model != "gpt2":
        raise ConfigError(
            f"weights.path: the tokenizer is of the kind {model!r:.60}, which is not read from GGUF files, only "
            "byte-pair encoding (gpt2); give the folder that the file was made from"
        )
    if not isinstance(rule, str) or rule not in RULES:
        raise ConfigError(
            f"weights.path: the tokenizer cuts texts by the rule {rule!r:.60}, which is not supported, only "
            f"{', '.join(RULES)}; give the folder that the file was made from"
        )
    with config_errors_at("weights.path"), tempfile.TemporaryDirectory() as name:
        definition = _definition(values, rule, settings)
        folder = Path(name)
        write_json(folder / "tokenizer.json", definition)
        try:
            return read_tokenizer(folder, settings)
        except ValueError as error:
            reason = str(error).replace(f"{folder}/", "")
            raise ValueError(f"its tokenizer cannot be read ({reason})") from None


def _definition(values: Mapping[str, Any], rule: str, settings: FolderSettings) -> Definition:
    """Return the tokenizer.json of a file."""
    names, merges = _strings(values, TOKENS), _strings(values, MERGES)
    kinds = values.get(TYPES, [NORMAL] * len(names))
    if not isinstance(kinds, list) or len(kinds) != len(names) or len(names) > MOST_IDS:
        raise ValueError(f"{TYPES} is not a list of {len(names):,} types; download the file again")
    if merges == [_impossible_merge(names)]:
        merges = []
    while kinds and kinds[-1] == UNUSED:
        names, kinds = names[:-1], kinds[:-1]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": token, "content": name, **flags, "special": kind == CONTROL}
        for token, (name, kind) in enumerate(zip(names, kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    steps = RULES[rule]
    if not merges:
        steps = [{**BYTES, "use_regex": False}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if rule in QWEN2_RULES else None,
        "pre_tokenizer": steps[0]
        if len(steps) == 1
        else {"type": "Sequence", "pretokenizers": steps},
        "post_processor": _post_processor(values, names, rule, settings),
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            **BPE_MODEL,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "ignore_merges": rule in WHOLE_FIRST,
            "vocab": {name: token for token, name in enumerate(names)},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def _strings(values: Mapping[str, Any], key: str) -> list[str]:
    found = values.get(key)
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f"{key} is not a list of strings; download the file again")
    return found


def _post_processor(
    values: Mapping[str, Any], names: list[str], rule: str, settings: FolderSettings
) -> Definition | None:
    """Return the step that adds the tokens around a text."""
    begins = values.get(BEGINS, rule in WHOLE_FIRST)
    around = [
        settings.ids.get("bos_token_id") if begins else None,
        next(iter(settings.end_ids), None) if values.get(ENDS) else None,
    ]
    if around == [None, None]:
        return None
    pieces: list[Definition] = [{"Sequence": {"id": "A", "type_id": 0}}]
    special: Definition = {}
    for token, at in zip(around, (0, len(pieces) + 1), strict=True):
        if token is not None and token < len(names):
            special[names[token]] = {"id": names[token], "ids": [token], "tokens": [names[token]]}
            pieces.insert(at, {"SpecialToken": {"id": names[token], "type_id": 0}})
    return {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special,
    }
