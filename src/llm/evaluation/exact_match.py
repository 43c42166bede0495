"""Exact match: equality except for case, punctuation around words and white space."""

import unicodedata

STRAIGHT = str.maketrans("‘’“”", "''\"\"")
QUOTES_AND_BRACKETS = "\"'`()[]{}«»"
BEFORE_A_WORD = QUOTES_AND_BRACKETS + "¿¡"
AFTER_A_WORD = QUOTES_AND_BRACKETS + ".,;:!?…"


def normalize(text: str) -> str:
    """Return the normalized form of a text.

    Accents are composed (Unicode's NFC), typographic quotes become straight, case is folded. Words are joined by single
    spaces, without quotes and brackets around them and punctuation after them. Other punctuation stays (3.5 is not 35,
    -5 is not 5, C# is not C), as do words of punctuation alone and, unlike in SQuAD's metric, articles.
    """
    text = unicodedata.normalize("NFC", text.translate(STRAIGHT)).casefold()
    bare = (word.lstrip(BEFORE_A_WORD).rstrip(AFTER_A_WORD) or word for word in text.split())
    return " ".join(bare)


def exact_match(candidate: str, reference: str) -> bool:
    """Return whether two texts are equal after normalization."""
    return normalize(candidate) == normalize(reference)
