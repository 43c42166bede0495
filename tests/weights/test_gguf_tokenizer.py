"""Tokenizers in GGUF files: written with the rule of llama.cpp that cuts as they do, and read back."""

import json

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from llm.config.errors import ConfigError
from llm.tokenizers.bpe import BPETokenizer, train_bpe
from llm.tokenizers.byte import ByteTokenizer
from llm.tokenizers.char import CharTokenizer
from llm.tokenizers.huggingface import HuggingFaceTokenizer
from llm.tokenizers.word import train_word
from llm.weights.folder_settings import FolderSettings
from llm.weights.gguf_tokenizer import (
    describe_tokenizer,
    read_gguf_tokenizer,
    read_token_settings,
)
from llm.weights.piece_rules import LLAMA3, QWEN2, has_unknown_bytes, piece_rule
from llm.weights.tokenizer_files import settings_of

TEXT = "In 1999 the cats don't SHOUT'S 12345 times;\n\n  größe = 日本 🙂 <|end|> <tool>\r\n"
PIECES = {
    "gpt-2": [],
    "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated")],
    "smaug-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated")],
    "qwen2": [pre_tokenizers.Split(Regex(QWEN2), "isolated")],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
}


def backend(rule):
    """Return a trained tokenizer of the library with the pieces of a rule, and three added tokens."""
    made = Tokenizer(models.BPE(ignore_merges=rule == "llama-bpe"))
    own = rule in ("gpt-2", "smollm")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own)
    made.pre_tokenizer = pre_tokenizers.Sequence([*PIECES[rule], last])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([TEXT] * 3, trainer)
    made.add_special_tokens(
        [AddedToken(name, normalized=False) for name in ("<|endoftext|>", "<|end|>")]
    )
    made.add_tokens([AddedToken("<tool>", normalized=False)])
    return made


def tokenizer(made):
    return HuggingFaceTokenizer(made.to_str(), "<|endoftext|>")


def round_trip(given, settings=None, *, vocab_size=None):
    settings = settings or settings_of(given)
    size = vocab_size or given.vocab_size
    values = describe_tokenizer(given, settings, vocab_size=size)
    back = read_gguf_tokenizer(values, read_token_settings(values))
    assert back is not None
    return values, back


@pytest.mark.parametrize("rule", PIECES)
def test_rule_is_recognized_and_the_tokens_are_equal(rule):
    given = tokenizer(backend(rule))
    values, back = round_trip(given)
    assert values["tokenizer.ggml.pre"] == rule
    for special in (False, True):
        assert back.encode(TEXT, special=special) == given.encode(TEXT, special=special)
    assert back.decode(given.encode(TEXT)) == TEXT
    assert (back.special_tokens, back.end_of_text) == (given.special_tokens, given.end_of_text)


@pytest.mark.parametrize(
    "given", [ByteTokenizer(), BPETokenizer([]), train_bpe([TEXT] * 3, vocab_size=280)]
)
def test_our_tokenizers_are_kept(given):
    values, back = round_trip(given, vocab_size=290)
    assert back.encode(TEXT) == given.encode(TEXT)
    assert (back.vocab_size, back.end_of_text) == (given.vocab_size, given.end_of_text)
    # llama.cpp needs a token for each embedding, and at least one merge.
    assert len(values["tokenizer.ggml.tokens"]) == 290
    assert values["tokenizer.ggml.tokens"][289] == "[PAD289]"
    assert values["tokenizer.ggml.merges"]


def test_token_before_every_text_is_kept():
    made = backend("llama-bpe")
    end = made.token_to_id("<|endoftext|>")
    pieces = TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)])
    made.post_processor = pieces
    values, back = round_trip(tokenizer(made))
    assert values["tokenizer.ggml.add_bos_token"] is True
    assert back.ends == ([end], [])
    # The rule of Llama 3 adds the token unless the file says otherwise.
    values, back = round_trip(tokenizer(backend("llama-bpe")))
    assert values["tokenizer.ggml.add_bos_token"] is False
    assert back.ends == ([], [])
    del values["tokenizer.ggml.add_bos_token"]
    back = read_gguf_tokenizer(values, read_token_settings(values))
    assert back is not None
    assert back.ends == ([end], [])


def changed(change):
    made = backend("gpt-2")
    change(made)
    return tokenizer(made)


def set_to(name, value):
    return changed(lambda made: setattr(made, name, value))


def lowered():
    return set_to("normalizer", normalizers.Lowercase())


def spaced():
    return set_to("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True))


def split_at_spaces():
    parts = [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return set_to("pre_tokenizer", pre_tokenizers.Sequence(parts))


def falling_back():
    definition = json.loads(backend("gpt-2").to_str())
    definition["model"]["byte_fallback"] = True
    definition["model"]["vocab"]["<0x00>"] = 399
    return HuggingFaceTokenizer(json.dumps(definition))


def stripping():
    return changed(lambda made: made.add_special_tokens([AddedToken("<m>", lstrip=True)]))


def test_fallback_without_tokens_for_bytes_makes_no_difference():
    definition = json.loads(backend("gpt-2").to_str())
    definition["model"] |= {"byte_fallback": True, "fuse_unk": True}
    assert piece_rule(definition) == "gpt-2"
    assert not has_unknown_bytes(HuggingFaceTokenizer(json.dumps(definition)))
    definition["model"]["unk_token"] = "a"
    assert not has_unknown_bytes(HuggingFaceTokenizer(json.dumps(definition)))
    rare = "ñ"  # the byte 0xF1
    del definition["model"]["vocab"][rare]
    definition["model"]["merges"] = [m for m in definition["model"]["merges"] if rare not in m]
    assert has_unknown_bytes(HuggingFaceTokenizer(json.dumps(definition)))


@pytest.mark.parametrize("rule", ["gpt-2", "qwen2"])
def test_empty_and_nested_sequences_make_no_difference(rule):
    definition = json.loads(backend(rule).to_str())
    pieces, normalizer = definition["pre_tokenizer"], definition["normalizer"]
    lists = (
        ("pretokenizers", pieces),
        ("normalizers", normalizer),
        ("decoders", definition["decoder"]),
    )
    for part, (name, step) in zip(("pre_tokenizer", "normalizer", "decoder"), lists, strict=True):
        inner = [] if step is None else [step]
        empty = {"type": "Sequence", name: []}
        definition[part] = {"type": "Sequence", name: [empty, {"type": "Sequence", name: inner}]}
    assert piece_rule(definition) == rule


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: CharTokenizer("abc"), "a tokenizer of characters has no counterpart in llama.cpp"),
        (lambda: train_word(["one two"]), "kind word has no counterpart"),
        (lowered, "other pieces or a normalizer"),
        (spaced, "other pieces or a normalizer"),
        (split_at_spaces, "other pieces or a normalizer"),
        (falling_back, "byte-pair encoding with byte_fallback"),
        (stripping, "white space around it"),
    ],
)
def test_other_tokenizers_are_refused(made, message):
    given = made()
    with pytest.raises(ValueError, match=message) as error:
        describe_tokenizer(given, FolderSettings(), vocab_size=400)
    assert "\n" not in str(error.value)


def test_vocabulary_larger_than_the_model_and_many_ends_are_refused():
    with pytest.raises(ValueError, match="has the id 256, but the model 256 embeddings"):
        describe_tokenizer(ByteTokenizer(), FolderSettings(), vocab_size=256)
    ends = FolderSettings(ids={"eos_token_id": [1, 2, 3, 4]})
    with pytest.raises(ValueError, match="4 tokens that end a text"):
        describe_tokenizer(ByteTokenizer(), ends, vocab_size=257)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "llama", "of the kind 'llama', which is not read from GGUF files"),
        ("pre", "tekken", "by the rule 'tekken', which is not supported, only gpt-2"),
        ("pre", None, "by the rule None"),
        ("tokens", ["a", 3], "tokens is not a list of strings"),
        ("merges", None, "merges is not a list of strings"),
        ("merges", ["no such"], "its tokenizer cannot be read"),
        ("token_type", [1], "token_type is not a list of 257 types"),
    ],
)
def test_damaged_vocabulary_is_one_line(key, value, message):
    values = describe_tokenizer(ByteTokenizer(), FolderSettings(), vocab_size=257)
    values[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(ConfigError, match=message) as error:
        read_gguf_tokenizer(values, FolderSettings())
    assert "\n" not in str(error.value)
