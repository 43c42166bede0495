"""The rules by which llama.cpp cuts a text into pieces before byte-pair encoding, found from a tokenizer.json."""

import json
from collections.abc import Iterable
from typing import Any

from llm.tokenizers.base import Tokenizer
from llm.tokenizers.gpt2 import CHARACTERS
from llm.weights.tokenizer_files import BPE_MODEL, as_huggingface, flat_steps

Definition = dict[str, Any]

# The pieces of Llama 3 and of Qwen 2: words may begin with one character that is neither a letter nor a digit.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = _WORDS + r"\p{N}{1,3}" + _REST, _WORDS + r"\p{N}" + _REST
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
GPT2_PIECES = [{**BYTES, "use_regex": True}]
# A token of a vocabulary that has one for each byte besides its pieces.
FALLBACK = "<0x00>"
DIGITS = {"type": "Digits", "individual_digits": True}


def _split(pattern: str) -> list[Definition]:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return [split, {**BYTES, "use_regex": False}]


# The steps that cut a text, and llama.cpp's names of the rule; the first name is written.
_RULES = [
    (("gpt-2", "olmo", "mpt", "phi-2"), GPT2_PIECES),
    (("llama-bpe", "llama3", "llama-v3"), _split(LLAMA3)),
    (("smaug-bpe", "dbrx"), _split(LLAMA3)),
    (("qwen2", "deepseek-r1-qwen"), _split(QWEN2)),
    (("smollm", "starcoder", "refact"), [DIGITS, *GPT2_PIECES]),
]
RULES = {name: steps for names, steps in _RULES for name in names}
# Their texts are normalized to NFC in the published tokenizers; llama.cpp leaves them as they are.
QWEN2_RULES = ("qwen2", "deepseek-r1-qwen")
# Rules that look up a whole piece before they merge, and which begin every text with a token.
WHOLE_FIRST = ("llama-bpe", "llama3", "llama-v3")


def no_counterpart(kind: str) -> str:
    """Return the message that refuses a kind of tokenizer."""
    return (
        f"{kind} has no counterpart in llama.cpp; only byte-pair encoding with the pieces of GPT-2, Llama 3, Qwen or "
        "SmolLM has one, such as tokenizer=bpe"
    )


def piece_rule(definition: Definition) -> str:
    """Return llama.cpp's name of the rule that cuts texts as a tokenizer.json does.

    Raises:
        ValueError: it has no such rule.
    """
    model = definition["model"]
    if model.get("type") != "BPE":
        raise ValueError(no_counterpart(f"a tokenizer of type {model.get('type')}"))
    whole_first = bool(model.get("ignore_merges"))
    plain = {**model, "ignore_merges": False}
    if (
        FALLBACK not in model["vocab"]
    ):  # they concern bytes without a token, see `has_unknown_bytes`
        plain |= {"fuse_unk": False, "byte_fallback": False}
    odd = [key for key, value in BPE_MODEL.items() if plain.get(key, value) != value]
    odd += [key for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if odd or not _has_bytes(definition):
        raise ValueError(
            no_counterpart(f"byte-pair encoding with {', '.join(odd) or 'other characters'}")
        )
    steps = flat_steps(definition, "pre_tokenizer")
    if not model["merges"] and [step["type"] for step in steps] == ["ByteLevel"]:
        steps = GPT2_PIECES  # without merges the pieces make no difference
    # trim_offsets changes the offsets in the text only.
    steps = [{**step, "trim_offsets": True} if "trim_offsets" in step else step for step in steps]
    normalizers = [step["type"] for step in flat_steps(definition, "normalizer")]
    for rule, known in RULES.items():
        if (
            steps == known
            and normalizers in ([], *([["NFC"]] if rule in QWEN2_RULES else []))
            and whole_first == (rule in WHOLE_FIRST)
        ):
            return rule
    raise ValueError(no_counterpart("byte-pair encoding with other pieces or a normalizer"))


def has_unknown_bytes(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer writes a token for bytes that its vocabulary does not have.

    llama.cpp leaves them out. They are control characters and characters of rare planes.
    """
    model = json.loads(as_huggingface(tokenizer).to_str())["model"]
    return model.get("unk_token") is not None and not {*CHARACTERS} <= model["vocab"].keys()


def _has_bytes(definition: Definition) -> bool:
    """Return whether tokens are decoded to bytes, perhaps after steps that change no token of this vocabulary."""
    names = definition["model"]["vocab"]
    *before, last = flat_steps(definition, "decoder") or [{}]
    return last.get("type") == "ByteLevel" and all(_changes_nothing(step, names) for step in before)


def _changes_nothing(step: Definition, names: Iterable[str]) -> bool:
    if step.get("type") == "Replace" and "String" in step.get("pattern", {}):
        return not any(step["pattern"]["String"] in name for name in names)
    return step.get("type") == "Fuse" or (
        step.get("type") == "ByteFallback" and FALLBACK not in names
    )
