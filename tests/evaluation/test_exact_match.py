"""Exact match ignores case, punctuation and white space only."""

import pytest

from llm.evaluation.exact_match import exact_match


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("Paris", "paris."),
        ("  the\tcat\n sat ", "The cat sat!"),
        ("“Pride and Prejudice”", '"Pride and Prejudice".'),
        ("don’t", "don't"),
        ("(42)", "42"),
        ("STRASSE", "Straße"),
        ("ﬁne", "fine"),
        ("cafe\u0301", "café"),
        ("", "  "),
    ],
)
def test_texts_match(said, wanted):
    assert exact_match(said, wanted)
    assert exact_match(wanted, said)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("3.5", "35"),
        ("-5", "5"),
        (".5", "5"),
        ("C#", "C"),
        ("50%", "50"),
        ("the cat", "cat"),
        ("cat dog", "catdog"),
        ("5²", "52"),
        ("?", "!"),
        ("?", ""),
        ("Paris is it", "Paris"),
    ],
)
def test_texts_do_not_match(said, wanted):
    assert not exact_match(said, wanted)
    assert not exact_match(wanted, said)
