"""The byte tokenizer equals UTF-8."""

import random

from llm.tokenizers.byte import ByteTokenizer


def test_ids_are_the_bytes_of_utf8():
    tokenizer = ByteTokenizer()
    assert tokenizer.vocab_size == 257
    assert tokenizer.end_of_text == 256
    assert tokenizer.encode("é\x00") == [0xC3, 0xA9, 0]


def test_random_bytes_decode_as_python_replaces_them():
    draw = random.Random(0)
    for _ in range(100):
        data = draw.randbytes(50)
        assert ByteTokenizer().decode(list(data)) == data.decode("utf-8", "replace")
