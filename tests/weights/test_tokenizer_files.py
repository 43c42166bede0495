"""Tokenizers in Hugging Face's files: read with their settings, exported with the same behavior."""

import json

import pytest
import tokenizers
from made_tokenizers import PROSE, byte_level, sentencepiece_like
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llm.data.examples.template import Message, Template
from llm.generation.text_generation import first_tokens
from llm.tokenizers import bpe, char, word
from llm.tokenizers.base import Tokenizer
from llm.tokenizers.bpe import BPETokenizer
from llm.tokenizers.byte import ByteTokenizer
from llm.tokenizers.gpt2 import gpt2_tokenizer
from llm.tokenizers.huggingface import HuggingFaceTokenizer
from llm.weights.tokenizer_files import read_tokenizer, read_vocabulary, write_tokenizer

DRAWN = [
    "",
    " ",
    "Hello, world! It's 2024; they'll've won't.",
    "naïve café, cafe\u0301, e\u0301\u0301",
    "👩‍👩‍👧‍👦 🇳🇿 👍🏽 \U0001f600\ufe0f",
    "漢字かな交じり文 עברית العربية हिन्दी ภาษาไทย",
    "mixed漢1字2\u00a0\u2003\u200bx²½Ⅷ",
    "NUL\x00 and \x01\x7f\x85\u2028\u2029 controls",
    "line\r\nline\rline\n\n\n  indented\t\ttabs \n ",
    "\ufeff\ufffd\uffff\U0010ffff",
    "<|endoftext|>a<|user|> <|user|>b <|endof <|end|><|end",
]


def saved(backend, folder, end):
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end).save_pretrained(folder)
    return folder


@pytest.fixture(params=["bpe", "bpe and more", "byte", "char", "huggingface"])
def ours(request) -> Tokenizer:
    match request.param:
        case "bpe":
            return bpe.train_bpe([PROSE * 3], 270)
        case "bpe and more":
            return bpe.train_bpe([PROSE * 3], 270).with_special_tokens(["<|user|>", "<|end|>"])
        case "byte":
            return ByteTokenizer()
        case "char":
            return char.train_char([PROSE, *DRAWN])
        case _:
            return HuggingFaceTokenizer(sentencepiece_like().to_str(), "</s>")


def test_exported_tokenizer_gives_the_same_tokens_in_transformers(ours, tmp_path, hard_texts):
    write_tokenizer(ours, tmp_path, context_length=64)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = [PROSE, *(DRAWN if ours.kind == "char" else [*DRAWN, *hard_texts])]
    # By default transformers adds the tokens around a text, which `encode` leaves to the caller.
    for text in texts:
        found = theirs(text, add_special_tokens=False)["input_ids"]
        assert found == ours.encode(text, special=True), text
        plain = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert plain == ours.encode(text), text
        assert theirs.decode(found) == ours.decode(found), text
    assert theirs.eos_token_id == ours.end_of_text
    assert len(theirs) == ours.vocab_size
    again = read_tokenizer(tmp_path)
    assert again is not None
    assert again.special_tokens == ours.special_tokens
    assert again.encode_batch(texts) == ours.encode_batch(texts)
    assert type(again) is (BPETokenizer if ours.kind == "bpe" else HuggingFaceTokenizer)


def test_exported_char_tokenizer_refuses_unknown_characters_in_transformers(tmp_path):
    write_tokenizer(char.train_char(["ab"]), tmp_path, context_length=64)
    with pytest.raises(Exception, match="UNK"):
        AutoTokenizer.from_pretrained(tmp_path)("abc")


def test_export_of_a_word_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"kind word has no counterpart"):
        write_tokenizer(word.train_word([PROSE]), tmp_path, context_length=64)


def test_encoding_of_gpt2_is_read_as_our_bpe_tokenizer(tmp_path, hard_texts):
    backend = byte_level()
    ours = read_tokenizer(saved(backend, tmp_path, "<|endoftext|>"))
    assert isinstance(ours, BPETokenizer)
    for text in hard_texts:
        assert ours.encode(text, special=True) == backend.encode(text).ids


@pytest.mark.parametrize("changes", [{"add_prefix_space": True}, {"use_regex": False}])
def test_encoding_that_differs_from_gpt2_is_not_read_as_our_bpe_tokenizer(
    changes, tmp_path, hard_texts
):
    backend = byte_level(**changes)
    ours = read_tokenizer(saved(backend, tmp_path, "<|endoftext|>"))
    assert isinstance(ours, HuggingFaceTokenizer)
    for text in hard_texts:
        assert ours.encode(text, special=True) == backend.encode(text).ids


def test_tokens_added_around_every_text_are_kept(tmp_path):
    backend = byte_level()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    folder = saved(backend, tmp_path / "nothing", "<|endoftext|>")
    assert isinstance(read_tokenizer(folder), BPETokenizer)
    end = backend.token_to_id("<|endoftext|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    assert first_tokens(read_tokenizer(tmp_path), "the") == backend.encode("the").ids


def test_encoding_of_gpt2_in_sequences_is_read_as_our_bpe_tokenizer(tmp_path):
    definition = json.loads(byte_level().to_str())
    for part, name in (("pre_tokenizer", "pretokenizers"), ("decoder", "decoders")):
        definition[part] = {"type": "Sequence", name: [definition[part]]}
    definition["normalizer"] = {"type": "Sequence", "normalizers": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    assert isinstance(read_tokenizer(tmp_path), BPETokenizer)


@pytest.mark.parametrize("part", ["pre_tokenizer", "post_processor", "decoder", "normalizer"])
def test_null_part_of_a_definition_has_no_effect(part, tmp_path, hard_texts):
    definition = {**json.loads(byte_level().to_str()), part: None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = read_tokenizer(tmp_path)
    assert ours is not None
    for text in [PROSE, *hard_texts]:
        assert ours.encode(text, special=True) == backend.encode(text).ids


@pytest.mark.parametrize("lacking", ["merges", "vocab"])
def test_a_definition_without_its_merges_is_named(lacking, tmp_path):
    definition = json.loads(byte_level().to_str())
    del definition["model"][lacking]
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    with pytest.raises(ValueError, match=r"tokenizer\.json: definition: is not a tokenizer"):
        read_tokenizer(tmp_path)


def test_another_end_of_text_or_normalisation_is_not_gpt2s_encoding(tmp_path):
    backend = byte_level()
    backend.add_special_tokens(["</s>"])
    ours = read_tokenizer(saved(backend, tmp_path / "end", "</s>"))
    assert isinstance(ours, HuggingFaceTokenizer)
    assert ours.end_of_text == backend.token_to_id("</s>")
    backend.normalizer = normalizers.Lowercase()
    ours = read_tokenizer(saved(backend, tmp_path / "lower", "<|endoftext|>"))
    assert isinstance(ours, HuggingFaceTokenizer)
    assert ours.encode("THE") == ours.encode("the")


def test_the_end_of_text_may_be_named_in_the_model_configuration(tmp_path):
    sentencepiece_like().save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path).end_of_text is None
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [2, 1]}))
    assert read_tokenizer(tmp_path).end_of_text == 2


def test_vocabulary_and_merges_files_are_read(tmp_path):
    backend = byte_level()
    backend.model.save(str(tmp_path))
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    size = len(vocabulary)
    (tmp_path / "vocab.json").write_text(json.dumps({**vocabulary, "<|endoftext|>": size}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|user|>": size + 1}))
    ours = read_tokenizer(tmp_path)
    assert ours.special_tokens == {"<|endoftext|>": size, "<|user|>": size + 1}
    assert ours.encode(PROSE) == backend.encode(PROSE).ids
    merges = (tmp_path / "merges.txt").read_text().splitlines()
    (tmp_path / "merges.txt").write_text("\n".join(merges[:-1]))
    with pytest.raises(
        ValueError, match=r"merges.txt and vocab.json: .* does not match the merges"
    ):
        read_tokenizer(tmp_path)


def test_files_of_openai_give_the_tokenizer_of_gpt2(shared_data, tmp_path, hard_texts, monkeypatch):
    """OpenAI's encoder.json and vocab.bpe, with the file names of tiktoken's cache."""
    cache = shared_data / "tiktoken"
    vocabulary = cache / "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"
    merges = cache / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"
    if not (vocabulary.is_file() and merges.is_file()):
        pytest.skip(f"GPT-2's vocabulary is not in {cache}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    ours = read_vocabulary(vocabulary, merges)
    assert ours.state() == gpt2_tokenizer().state()
    write_tokenizer(ours, tmp_path, context_length=1024)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    verdict = (shared_data / "the-verdict.txt").read_text()
    for text in [*hard_texts, verdict]:
        assert theirs(text)["input_ids"] == ours.encode(text, special=True)
    assert len(theirs(verdict)["input_ids"]) == 5145
    assert read_tokenizer(tmp_path).state() == ours.state()


def test_folder_without_a_tokenizer_gives_none(tmp_path):
    assert read_tokenizer(tmp_path) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"type": "BPE"}}'])
def test_a_damaged_file_is_named(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path)


def test_tokens_put_before_every_text_begin_prompts_and_conversations():
    backend = tokenizers.Tokenizer(
        models.WordLevel({"<s>": 0, "a": 1, "b": 2, "?": 3}, unk_token="?")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>"])
    bare = HuggingFaceTokenizer(backend.to_str())
    backend.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    tokenizer = HuggingFaceTokenizer(backend.to_str())
    assert (bare.ends, tokenizer.ends) == (([], []), ([0], []))
    assert tokenizer.encode("a b") == [1, 2]
    assert first_tokens(tokenizer, "a b") == [0, 1, 2]
    assert first_tokens(tokenizer, "") == [0]
    roles = {"system": "", "user": "", "assistant": ""}
    template = Template(begin=roles, end={**roles, "assistant": "?"})
    assert template.encode_prompt([Message("user", "a b")], tokenizer) == [0, 1, 2]


def with_start_token(vocabulary, **settings):
    """A tokenizer of whole words that puts `<s>` before every text."""
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, **settings))
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    return backend


def test_tokens_around_a_text_are_found_for_any_vocabulary():
    assert HuggingFaceTokenizer(with_start_token({"<s>": 0, "the": 1}).to_str()).ends == ([0], [])
    letters = with_start_token({"<s>": 0, "b": 1})
    letters.pre_tokenizer = pre_tokenizers.Split("a", "removed")
    assert HuggingFaceTokenizer(letters.to_str()).ends == ([0], [])


def test_a_template_without_the_text_is_refused():
    backend = with_start_token({"<s>": 0, "a": 1})
    backend.post_processor = processors.TemplateProcessing("<s>", None, [("<s>", 0)])
    with pytest.raises(ValueError, match="definition: what it adds around a text"):
        HuggingFaceTokenizer(backend.to_str())


def test_too_large_id_is_refused():
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 2**22}, unk_token="a"))
    with pytest.raises(ValueError, match=r"id 4,194,304 is too large; use ids below"):
        HuggingFaceTokenizer(backend.to_str())
