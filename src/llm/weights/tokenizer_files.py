"""Reading and writing of the tokenizer files of a Hugging Face folder."""

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from llm.files import read_object, read_utf8, write_json
from llm.tokenizers.base import END_OF_TEXT, Tokenizer
from llm.tokenizers.bpe import BYTES, BPETokenizer
from llm.tokenizers.byte import ByteTokenizer
from llm.tokenizers.char import CharTokenizer
from llm.tokenizers.gpt2 import CHARACTERS, merge_ids, split_merges
from llm.tokenizers.huggingface import HuggingFaceTokenizer
from llm.weights.folder_settings import TEMPLATE, TOKENIZER, FolderSettings, read_settings

# Keys of tokenizer.json that may be absent, and the values that our byte-pair encoding requires.
BPE_MODEL = {
    "type": "BPE",
    "dropout": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
BPE_PIECES = {"add_prefix_space": False, "use_regex": True}


def read_tokenizer(folder: Path, settings: FolderSettings | None = None) -> Tokenizer | None:
    """Return the tokenizer of tokenizer.json, or of vocab.json and merges.txt; None if there is neither.

    A `BPETokenizer` if that gives the same tokens, otherwise a `HuggingFaceTokenizer`.

    Args:
        folder: the folder with the files.
        settings: the folder's settings; None reads them.

    Raises:
        ValueError: a file cannot be read; the error names it.
    """
    file, vocabulary, merges = (
        folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    if not file.is_file():
        return read_vocabulary(vocabulary, merges)
    settings = settings or read_settings(folder)
    definition = read_object(file)
    with suppress(Exception):  # the constructor below reports an invalid definition
        definition = _with_special_tokens(definition, {*settings.tokens.values()})
    end = _end_of_text(settings, definition)
    ours = _as_bpe(definition) if end == END_OF_TEXT else None
    if ours is not None and ours.end_tokens >= {*settings.end_ids}:
        return ours
    try:
        return HuggingFaceTokenizer(json.dumps(definition), end, end_tokens=settings.end_ids)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def read_vocabulary(vocabulary: Path, merges: Path) -> BPETokenizer | None:
    """Return the tokenizer of GPT-2's files: vocab.json and merges.txt, or encoder.json and vocab.bpe.

    Its special tokens are `<|endoftext|>` and those of an added_tokens.json in the same folder.

    Returns:
        The tokenizer; None if a file is missing.

    Raises:
        ValueError: a file cannot be read, or the two do not fit each other.
    """
    if not (vocabulary.is_file() and merges.is_file()):
        return None
    ids = read_object(vocabulary)
    added = vocabulary.with_name("added_tokens.json")
    special = read_object(added) if added.is_file() else {}
    try:
        pairs = split_merges(read_utf8(merges))
        return _with_vocabulary(pairs, ids | special, special={END_OF_TEXT, *special})
    except ValueError as error:
        raise ValueError(f"{merges} and {vocabulary.name}: {error}") from error


def write_tokenizer(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    context_length: int,
    settings: FolderSettings | None = None,
) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template.

    Args:
        tokenizer: the tokenizer to write.
        folder: the folder to write into.
        context_length: context length of the model, in tokens.
        settings: roles of special tokens, and the chat template; None for `settings_of`.

    Raises:
        ValueError: the format cannot express the tokenizer.
    """
    as_huggingface(tokenizer).save(str(folder / "tokenizer.json"))
    settings = settings or settings_of(tokenizer)
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        **settings.tokenizer,
        **settings.tokens,
    }
    write_json(folder / TOKENIZER, content)
    if settings.chat_template is not None:
        (folder / TEMPLATE).write_bytes(settings.chat_template.encode("utf-8"))


def settings_of(tokenizer: Tokenizer) -> FolderSettings:
    """Return the settings of a model trained from scratch: the token that ends a document also begins the next."""
    end = tokenizer.end_of_text
    if end is None:
        return FolderSettings()
    name = token_name(tokenizer, end)
    ids: dict[str, Any] = {"bos_token_id": end, "eos_token_id": end}
    return FolderSettings(ids=ids, generation=ids, tokens={"bos_token": name, "eos_token": name})


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """Return the name of a special token."""
    return next(name for name, own in tokenizer.special_tokens.items() if own == token)


def as_huggingface(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Return the tokenizer converted to the library `tokenizers`.

    Raises:
        ValueError: the library cannot express it.
    """
    match tokenizer:
        case HuggingFaceTokenizer():
            return tokenizers.Tokenizer.from_str(tokenizer.state()["definition"])
        case BPETokenizer():
            names = _token_names(tokenizer)
            merges = [(names[left], names[right]) for left, right in tokenizer.merges]
            model = _byte_level({name: token for token, name in enumerate(names)}, merges)
        case ByteTokenizer():
            model = _byte_level(dict(zip(CHARACTERS, BYTES, strict=True)), [])
        case CharTokenizer():
            model = tokenizers.Tokenizer(
                models.WordLevel({c: token for token, c in enumerate(tokenizer.characters)})
            )
            model.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
            model.decoder = decoders.Fuse()
        case _:
            raise ValueError(
                f"a tokenizer of kind {tokenizer.kind} has no counterpart in Hugging Face's library, which "
                "cannot place spaces as it does; train with bpe, byte or char"
            )
    model.add_special_tokens(
        [AddedToken(name, normalized=False) for name in tokenizer.special_tokens]
    )
    return model


def _byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(merges))
    model.decoder = decoders.ByteLevel()
    return model


def _token_names(tokenizer: BPETokenizer) -> list[str]:
    """Return the ordinary tokens as strings of `CHARACTERS`."""
    character = dict(zip(BYTES, CHARACTERS, strict=True))
    ordinary = range(256 + len(tokenizer.merges))
    return ["".join(character[byte] for byte in tokenizer.token_bytes(t)) for t in ordinary]


def _with_vocabulary(
    merges: Sequence[Sequence[str]], ids: dict[str, Any], *, special: Collection[str]
) -> BPETokenizer:
    """Return the tokenizer of merges, with special tokens last.

    Raises:
        ValueError: its vocabulary is not `ids`.
    """
    pairs = merge_ids(merges)
    last = sorted(special, key=lambda name: ids.get(name, 0))
    names = [*CHARACTERS, *map("".join, merges), *last]
    if ids != {name: token for token, name in enumerate(names)}:
        raise ValueError("the vocabulary does not match the merges and their order")
    return BPETokenizer(pairs, last)


def _as_bpe(definition: dict[str, Any]) -> BPETokenizer | None:
    """Return our tokenizer if it is equivalent to a tokenizer.json, otherwise None."""
    try:
        model, added = definition["model"], definition.get("added_tokens") or []
        if not (_is_plain(definition) and all(map(_is_plain_token, added))):
            return None
        # Older files do not contain the model's type, but only BPE has merges.
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        special = {token["content"]: token["id"] for token in added}
        return _with_vocabulary(merges, model["vocab"] | special, special=special)
    except (AttributeError, LookupError, TypeError, ValueError):
        return None


def _is_plain(definition: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json splits and joins like GPT-2's and adds nothing to a text."""
    model = definition["model"]
    (pieces,), (decoder,) = (flat_steps(definition, part) for part in ("pre_tokenizer", "decoder"))
    return (
        not flat_steps(definition, "normalizer")
        and _adds_nothing(definition.get("post_processor"))
        and pieces["type"] == decoder["type"] == "ByteLevel"
        and all(model.get(key, value) == value for key, value in BPE_MODEL.items())
        and not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
        and all(pieces.get(key, value) == value for key, value in BPE_PIECES.items())
    )


def flat_steps(definition: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """Return the steps of a part of a tokenizer.json, such as its "normalizer"; sequences may be nested, or empty."""
    lists = {
        "normalizer": "normalizers",
        "pre_tokenizer": "pretokenizers",
        "decoder": "decoders",
    }

    def flat(step: dict[str, Any] | None) -> list[dict[str, Any]]:
        if step is None:
            return []
        if step.get("type") != "Sequence":
            return [step]
        return [each for inner in step[lists[part]] for each in flat(inner)]

    return flat(definition.get(part))


def _adds_nothing(post_processor: dict[str, Any] | None) -> bool:
    """Return whether a post-processor adds no token to a text."""
    if post_processor is None or post_processor["type"] == "ByteLevel":
        return True
    return [list(piece) for piece in post_processor["single"]] == [["Sequence"]]


def _is_plain_token(token: dict[str, Any]) -> bool:
    """Return whether a token is special, keeps white space around it and is found inside words too."""
    return token["special"] and not any(
        token.get(key) for key in ("lstrip", "rstrip", "single_word")
    )


def _with_special_tokens(definition: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return a tokenizer.json in which the tokens of these names are special."""
    added = definition.get("added_tokens") or []
    if {*names} <= {token.get("content") for token in added if token.get("special")}:
        return definition
    backend = tokenizers.Tokenizer.from_str(json.dumps(definition))
    known = [name for name in names if backend.token_to_id(name) is not None]
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in known])
    return json.loads(backend.to_str())


def _end_of_text(settings: FolderSettings, definition: dict[str, Any]) -> str | None:
    """Return the name of the token that ends a text, from the settings or the tokenizer."""
    ids = {entry["content"]: entry["id"] for entry in definition.get("added_tokens") or []}
    if (name := settings.tokens.get("eos_token")) in ids:
        return name
    first = next(iter(settings.end_ids), None)
    return next((name for name, token in ids.items() if token == first), None)
