"""The word tokenizer."""

import re
from pathlib import Path

import pytest

from llm.tokenizers.word import split_words_and_marks, train_word


@pytest.mark.parametrize(
    "text",
    [
        "It's the last he painted, you know.",
        '"Well?" she said -- "it is (almost) a well-known [sic] case!"',
        "Ten % of them: yes; no.".replace(" %", "%"),
        "They'll say: don't!",
    ],
)
def test_decoding_restores_prose(text: str):
    tokenizer = train_word([text])
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_unknown_words_map_to_unk():
    tokenizer = train_word(["the cat sat"])
    ids = tokenizer.encode("the dog sat, the dog")
    assert tokenizer.decode(ids) == "the <|unk|> sat <|unk|> the <|unk|>"
    assert ids.count(tokenizer.special_tokens["<|unk|>"]) == 3


def test_vocab_size_keeps_the_most_frequent_words():
    tokenizer = train_word(["b b b a a c d", "d"], vocab_size=5)
    assert tokenizer.words == ["a", "b", "d"]
    assert tokenizer.vocab_size == 5
    with pytest.raises(ValueError, match="vocab_size=2 is too small"):
        train_word(["a"], vocab_size=2)


def test_splits_the_verdict_as_the_book_does(shared_data: Path):
    text = (shared_data / "the-verdict.txt").read_text()
    reference = [p for p in re.split(r'([,.:;?_!"()\']|--|\s)', text) if p.strip()]
    assert split_words_and_marks(text) == reference
    assert train_word([text]).vocab_size == 1130 + 2
