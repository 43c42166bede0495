"""Byte-pair encoding: our trainer compared with fast libraries, and errors."""

import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import tokenizers

from llm.tokenizers.bpe import (
    BYTES,
    LONG_RUN,
    BPETokenizer,
    LearnMerges,
    Pair,
    encode_from_scratch,
    learn_merges,
    learn_merges_fast,
    split_long_runs,
    train_bpe,
)

TRAINING_TEXTS = {
    "words": ["low low low low low lower lower newest newest newest widest widest widest"],
    "ties": ["ab cd ef ab cd ef", "fe dc ba fe dc ba"],
    "overlaps": ["aaaaaaa aaaaa aaa aa abababab bababa", "xxxxxxxxxx"],
    "one character": ["a"],
    "one pair": ["ab"],
    "unicode": ["漢字漢字 かなかな naïve café café 👍🏽👍🏽 \x00\x00 \r\n\r\n\u00a0\u00a0", "漢字"],
    "surrogates": ["a\ud800b a\ud800b \ud83d\ude00 \U0001f600"],
    "long runs": [" " * 20_000 + "x", "a" * 20_000, "\n" * 9_000],
}


def rust_tokenizer(merges: list[Pair]) -> tokenizers.Tokenizer:
    """The Rust library's byte-level BPE with the same merges, from files in GPT-2's format."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = list(alphabet)
    pairs = []
    for left, right in merges:
        pairs.append((names[left], names[right]))
        names.append(names[left] + names[right])
    spelt = {name: token for token, name in enumerate(names)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=spelt, merges=pairs))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


@pytest.mark.parametrize("min_frequency", [0, 2, 5])
@pytest.mark.parametrize("name", TRAINING_TEXTS)
def test_learns_the_merges_of_the_rust_trainer(name: str, min_frequency: int):
    texts = TRAINING_TEXTS[name]
    assert learn_merges(iter(texts), 200, min_frequency=min_frequency) == learn_merges_fast(
        iter(texts), 200, min_frequency=min_frequency
    )


def test_learns_the_merges_of_the_rust_trainer_on_random_ties():
    draw = random.Random(0)
    for _ in range(30):
        texts = ["".join(draw.choices("abc ", k=draw.randrange(1, 200))) for _ in range(3)]
        assert learn_merges(texts, 60, min_frequency=2) == learn_merges_fast(
            texts, 60, min_frequency=2
        )


def test_learns_the_merges_of_the_rust_trainer_on_prose(shared_data: Path):
    text = (shared_data / "the-verdict.txt").read_text()
    merges = learn_merges([text], 1000, min_frequency=2)
    assert len(merges) == 1000
    assert merges == learn_merges_fast([text], 1000, min_frequency=2)


@pytest.mark.parametrize("learn", [learn_merges, learn_merges_fast])
def test_first_merges_equal_the_example_of_sennrich_et_al(learn: LearnMerges):
    # The example of Sennrich et al.: "es" occurs nine times, and so does "est" once "es" is merged.
    tokenizer = train_bpe(
        [" ".join(["low"] * 5 + ["newest"] * 6 + ["widest"] * 3)], 257 + 2, learn=learn
    )
    assert [tokenizer.token_bytes(token) for token in (256, 257)] == [b"es", b"est"]


@pytest.fixture(scope="module")
def tokenizer(hard_texts: list[str]) -> BPETokenizer:
    return train_bpe(["the cat sat on the mat. " * 5, *hard_texts], vocab_size=600)


def test_tiktoken_encodes_as_the_specification_and_as_rust(
    tokenizer: BPETokenizer, hard_texts: list[str]
):
    rust = rust_tokenizer(tokenizer.merges)
    for text in hard_texts:
        ids = tokenizer.encode(text)
        assert ids == encode_from_scratch(text, tokenizer.merges)
        assert ids == rust.encode(text).ids


def test_a_prose_tokenizer_encodes_as_the_specification_and_as_rust(shared_data: Path):
    text = (shared_data / "tinyshakespeare.txt").read_text()[:300_000]
    tokenizer = train_bpe([text], 4096)
    assert tokenizer.vocab_size == 4096
    ids = tokenizer.encode(text)
    assert ids == rust_tokenizer(tokenizer.merges).encode(text).ids
    assert ids[:5_000] == encode_from_scratch(text[:50_000], tokenizer.merges)[:5_000]
    assert len(text) / len(ids) > 3
    assert tokenizer.decode(ids) == text


def test_ids_are_bytes_in_gpt2_order_then_merges_then_specials():
    tokenizer = BPETokenizer([(0, 1)], special_tokens=["<|endoftext|>", "<|end|>"])
    assert [tokenizer.token_bytes(token) for token in range(256)] == [bytes([b]) for b in BYTES]
    assert BYTES[:3] == b'!"#'
    assert tokenizer.encode('!"!') == [256, 0]
    assert tokenizer.special_tokens == {"<|endoftext|>": 257, "<|end|>": 258}
    assert tokenizer.vocab_size == 259


def test_vocabulary_without_merges_is_a_byte_tokenizer():
    tokenizer = train_bpe(["anything at all"], vocab_size=257)
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)
    assert tokenizer.decode(tokenizer.encode("naïve")) == "naïve"
    assert len(tokenizer.encode("naïve")) == 6


@pytest.mark.parametrize("vocab_size", [256, 0, -1])
def test_vocab_size_below_257_is_refused(vocab_size: int):
    with pytest.raises(ValueError, match=f"vocab_size={vocab_size} is too small.*257"):
        train_bpe(["text"], vocab_size=vocab_size)


def test_too_little_text_gives_a_smaller_vocabulary_with_a_warning():
    with pytest.warns(UserWarning, match=r"vocabulary of 258, not of the requested 50,000"):
        tokenizer = train_bpe(["abab"], vocab_size=50_000)
    assert tokenizer.vocab_size == 258
    assert tokenizer.end_of_text == 257


def test_no_warning_if_the_vocabulary_has_the_requested_size():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_bpe(["the cat sat on the mat " * 5], vocab_size=260)


def test_trains_a_vocabulary_of_fifty_thousand_tokens():
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=8)) for _ in range(20_000)]
    tokenizer = train_bpe([" ".join(words)], vocab_size=50_257, min_frequency=1)
    assert tokenizer.vocab_size == 50_257
    text = " ".join(words[:1000])
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_training_texts_are_read_once_and_one_by_one():
    alive = 0

    class Text(str):
        def __new__(cls, text: str):
            nonlocal alive
            alive += 1
            assert alive < 100, "the texts are kept in memory"
            return super().__new__(cls, text)

        def __del__(self):
            nonlocal alive
            alive -= 1

    train_bpe((Text(f"document number {n}") for n in range(1000)), vocab_size=270)


def test_training_on_pieces_of_long_texts_gives_the_same_merges(monkeypatch, hard_texts: list[str]):
    text = "\n".join(hard_texts) + " prose, 1984 and\n\nmore  of it.\tThe end" * 50
    monkeypatch.setattr("llm.tokenizers.bpe.PIECE", 40)
    assert learn_merges_fast([text], 150, min_frequency=2) == learn_merges(
        [text], 150, min_frequency=2
    )


def test_memory_does_not_grow_with_a_document():
    """With 6 MB in one piece, the Rust trainer needs half a gigabyte."""
    script = (
        "import resource; from llm.tokenizers import bpe; text = 'some words of it and 12 more. ' * 200_000; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = peak(); "
        "bpe.train_bpe([text], 270); print((peak() - before) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 150, "MB"


@pytest.mark.parametrize("unit", [" ", "a", "\n", "漢", "a1", "\t \n"])
@pytest.mark.parametrize("tail", ["", "x", " "])
def test_million_equal_characters_are_encoded_within_seconds(
    tokenizer: BPETokenizer, unit: str, tail: str
):
    text = "start" + unit * (1_000_000 // len(unit)) + tail
    start = time.process_time()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.process_time() - start < 10


def test_only_long_runs_are_cut():
    words = "seven words of ordinary prose, no more. " * 1000
    assert list(split_long_runs(words)) == [words]
    assert list(split_long_runs("")) == []
    for text in (words + " " * 3 * LONG_RUN + words, "x" * 5 * LONG_RUN + words, " " * LONG_RUN):
        parts = list(split_long_runs(text))
        assert "".join(parts) == text
        assert "" not in parts
        for part in parts:
            assert max(map(len, part.split()), default=0) < 2 * LONG_RUN
            assert " " * 2 * LONG_RUN not in part
