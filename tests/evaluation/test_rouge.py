"""ROUGE-L, compared with a textbook table, Lin's own example and torchmetrics."""

import random

import pytest
from torchmetrics.functional.text.rouge import rouge_score

from llm.evaluation.rouge import common_subsequence, rouge_l, rouge_words


def table(first, second):
    """The recurrence of the textbook."""
    row = [0] * (len(second) + 1)
    for a in first:
        above, row = row, [0]
        for j, b in enumerate(second):
            row.append(above[j] + 1 if a == b else max(above[j + 1], row[j]))
    return row[-1]


def test_the_subsequence_is_as_long_as_the_tables():
    drawn = random.Random(0)
    for _ in range(300):
        letters = "abcdefgh"[: drawn.randint(1, 8)]
        first = drawn.choices(letters, k=drawn.randint(0, 90))
        second = drawn.choices(letters, k=drawn.randint(0, 90))
        assert common_subsequence(first, second) == table(first, second)


def test_lins_example():
    """Lin 2004, section 3.1: the third sentence has only one of the four words in order."""
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == 3 / 4
    assert rouge_l("the gunman kill police", reference) == 2 / 4
    assert rouge_l("the gunman police killed", reference) == 2 / 4


def test_it_equals_torchmetrics():
    drawn = random.Random(1)
    pieces = ["The", "cat,", "sat", "on", "mat.", "don't", "x_y", "3.5", "well-known", "--", "\n"]
    for _ in range(100):
        said, wanted = (" ".join(drawn.choices(pieces, k=drawn.randint(0, 12))) for _ in range(2))
        theirs = rouge_score(said, wanted, rouge_keys="rougeL")["rougeL_fmeasure"].item()
        assert rouge_l(said, wanted) == pytest.approx(theirs, abs=1e-6)


def test_the_same_is_one_and_the_order_of_arguments_is_free():
    assert rouge_l("A cat sat.", "a CAT  sat") == 1
    assert rouge_l("a b c", "b c d e") == rouge_l("b c d e", "a b c")


@pytest.mark.parametrize(("said", "wanted"), [("", "a"), ("a", ""), ("", ""), ("...", "...")])
def test_a_text_without_words_has_nothing_in_common(said, wanted):
    assert rouge_l(said, wanted) == 0


def test_letters_are_letters_in_any_script():
    assert rouge_words("Naïve Größe, слово_два!") == ["naïve", "größe", "слово", "два"]
