"""The character tokenizer encodes its characters and reports others."""

from pathlib import Path

import pytest

from llm.tokenizers.char import train_char


def test_ids_follow_code_points():
    tokenizer = train_char(["hello", "wörld"])
    assert tokenizer.characters == "dehlorwö"
    assert tokenizer.encode("od") == [4, 0]
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (9, 8)


def test_unknown_characters_are_named_with_a_remedy():
    tokenizer = train_char(["abc"])
    with pytest.raises(ValueError, match=r"'é' \(U\+00E9, 2 times\).*train it.*byte or bpe"):
        tokenizer.encode("aébé")


def test_only_the_first_of_many_unknown_characters_are_named():
    with pytest.raises(ValueError, match="and 992 more") as raised:
        train_char(["a"]).encode("".join(map(chr, range(0x4E00, 0x4E00 + 1000))))
    assert len(str(raised.value)) < 500


def test_shakespeare_has_65_characters(shared_data: Path):
    text = (shared_data / "tinyshakespeare.txt").read_text()
    tokenizer = train_char([text])
    assert tokenizer.vocab_size == 65 + 1
    assert tokenizer.decode(tokenizer.encode(text)) == text
