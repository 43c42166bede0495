"""Exact match: the answer is the reference, but for case, punctuation around words and white space."""

import unicodedata

STRAIGHT = str.maketrans("‘’“”", "''\"\"")
QUOTES_AND_BRACKETS = "\"'`()[]{}«»"
BEFORE_A_WORD = QUOTES_AND_BRACKETS + "¿¡"
AFTER_A_WORD = QUOTES_AND_BRACKETS + ".,;:!?…"


def normalize(text: str) -> str:
    """A text in the form that is compared.

    Accents are composed (Unicode's NFC), typographic quotes straight, case is folded, and the words are
    joined by single spaces, without the quotes and brackets around them and without the marks that end
    them. What stands inside a word or makes it another one stays: 3.5 is not 35, -5 is not 5, C# is not
    C. Articles stay too (SQuAD's measure drops them). A word of punctuation alone is kept.
    """
    text = unicodedata.normalize("NFC", text.translate(STRAIGHT)).casefold()
    bare = (word.lstrip(BEFORE_A_WORD).rstrip(AFTER_A_WORD) or word for word in text.split())
    return " ".join(bare)


def exact_match(candidate: str, reference: str) -> bool:
    """Whether two texts are the same once normalised."""
    return normalize(candidate) == normalize(reference)
