"""GPT-2's tokenizer: every id equals those of tiktoken and Hugging Face."""

import json
from pathlib import Path

import pytest
import requests
import tiktoken
import transformers

from llm.tokenizers.base import load
from llm.tokenizers.bpe import BPETokenizer, encode_from_scratch
from llm.tokenizers.gpt2 import gpt2_tokenizer

MERGES_FILE = "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"
VOCABULARY_FILE = "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"


@pytest.fixture(scope="module")
def cache(shared_data: Path) -> Path:
    folder = shared_data / "tiktoken"
    if not (folder / MERGES_FILE).is_file():
        pytest.skip(f"GPT-2's merges are not in {folder}")
    return folder


@pytest.fixture
def cached(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))


@pytest.fixture(scope="module")
def tokenizer(cache: Path) -> BPETokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        return gpt2_tokenizer()


def test_published_ids(tokenizer: BPETokenizer):
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (50257, 50256)
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.encode("Every effort moves you") == [6109, 3626, 6100, 345]


@pytest.mark.usefixtures("cached")
def test_encodes_as_tiktoken(tokenizer: BPETokenizer, hard_texts: list[str], shared_data: Path):
    reference = tiktoken.get_encoding("gpt2")
    verdict = (shared_data / "the-verdict.txt").read_text()
    assert len(tokenizer.encode(verdict)) == 5145
    for text in [*hard_texts, verdict]:
        ids = tokenizer.encode(text)
        assert ids == reference.encode_ordinary(text)
        assert tokenizer.decode(ids) == text
    text = "one<|endoftext|>two"
    assert tokenizer.encode(text, special=True) == reference.encode(text, allowed_special="all")


def test_encodes_as_hugging_face(tokenizer: BPETokenizer, hard_texts: list[str], cache: Path):
    merges = (cache / MERGES_FILE).read_text(encoding="utf-8").splitlines()[1:]
    reference = transformers.GPT2Tokenizer(
        vocab=json.loads((cache / VOCABULARY_FILE).read_text(encoding="utf-8")),
        merges=[tuple(line.split()) for line in merges],
    )
    for text in hard_texts:
        if "<|endoftext|>" not in text:  # theirs reads it as the special token
            assert tokenizer.encode(text) == reference.encode(text)


def test_encodes_as_the_specification(
    tokenizer: BPETokenizer, hard_texts: list[str], shared_data: Path
):
    verdict = (shared_data / "the-verdict.txt").read_text()
    for text in ["\n".join(hard_texts), verdict]:
        assert tokenizer.encode(text) == encode_from_scratch(text, tokenizer.merges)


def test_a_saved_copy_needs_no_cache(
    tokenizer: BPETokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tokenizer.save(tmp_path / "tokenizer.json")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "nothing"))
    copy = load(tmp_path / "tokenizer.json")
    assert copy.encode("Hello world") == [15496, 995]
    assert copy.special_tokens == {"<|endoftext|>": 50256}


def test_a_missing_file_is_named_when_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def offline(*args: object, **kwargs: object) -> None:
        raise requests.ConnectionError("no route\nto host")

    monkeypatch.setattr(requests, "get", offline)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"vocab\.bpe as 6d1c.*TIKTOKEN_CACHE_DIR"
    ) as raised:
        gpt2_tokenizer()
    assert "\n" not in str(raised.value)
