"""Texts that are difficult to tokenize: a fixture for several packages."""

import random

import pytest

HARD_TEXTS = [
    "",
    " ",
    "Hello, world! It's 2024; they'll've won't.",
    "naïve café, cafe\u0301, e\u0301\u0301\u0301",
    "👩‍👩‍👧‍👦 🇳🇿 👍🏽 \U0001f600\ufe0f",
    "漢字かな交じり文 עברית العربية हिन्दी ภาษาไทย",
    "mixed漢1字2\u00a0\u2003\u200bx²½Ⅷ",
    "NUL\x00 and \x01\x7f\x85\u2028\u2029 controls",
    "line\r\nline\rline\n\n\n  indented\t\ttabs \n ",
    "a" * 300 + "  " * 200 + "\n" * 77 + "!" * 50,
    "<|endoftext|><|unk|> <|endof",
    "\ufeff\ufffd\uffff\U0010ffff",
]


def random_texts(seed: int, count: int) -> list[str]:
    """Texts of random Unicode characters, with some ranges more frequent."""
    draw = random.Random(seed)
    ranges = [(0, 0x80), (0x20, 0x7F), (0x80, 0x530), (0x3040, 0xA000), (0x1F300, 0x1F700)]
    ranges += [(0x2000, 0x2070), (0xE000, 0x110000)]
    return [
        "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(1, 80)))
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def hard_texts() -> list[str]:
    """Difficult texts written by hand, and random ones."""
    return HARD_TEXTS + random_texts(seed=0, count=200)
