"""ROUGE-L, compared with a textbook table, Lin's own example and torchmetrics."""

import random

import pytest
from torchmetrics.functional.text.rouge import rouge_score

from llm.evaluation.rouge import common_subsequence, rouge_l, rouge_words


def textbook_length(first, second):
    """Return the length of the longest common subsequence by the recurrence of the textbook."""
    row = [0] * (len(second) + 1)
    for a in first:
        above, row = row, [0]
        for j, b in enumerate(second):
            row.append(above[j] + 1 if a == b else max(above[j + 1], row[j]))
    return row[-1]


def test_length_of_the_subsequence_equals_the_textbook_recurrence():
    drawn = random.Random(0)
    for _ in range(300):
        letters = "abcdefgh"[: drawn.randint(1, 8)]
        first = drawn.choices(letters, k=drawn.randint(0, 90))
        second = drawn.choices(letters, k=drawn.randint(0, 90))
        assert common_subsequence(first, second) == textbook_length(first, second)


def test_example_of_lin_is_reproduced():
    """Lin 2004, section 3.1: of the four words of the reference, 3, 2 and 2 are in order."""
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == 3 / 4
    assert rouge_l("the gunman kill police", reference) == 2 / 4
    assert rouge_l("the gunman police killed", reference) == 2 / 4


def test_rouge_l_equals_torchmetrics():
    drawn = random.Random(1)
    pieces = ["The", "cat,", "sat", "on", "mat.", "don't", "x_y", "3.5", "well-known", "--", "\n"]
    for _ in range(100):
        said, wanted = (" ".join(drawn.choices(pieces, k=drawn.randint(0, 12))) for _ in range(2))
        theirs = rouge_score(said, wanted, rouge_keys="rougeL")["rougeL_fmeasure"].item()
        assert rouge_l(said, wanted) == pytest.approx(theirs, abs=1e-6)


def test_equal_texts_score_one_and_the_score_is_symmetric():
    assert rouge_l("A cat sat.", "a CAT  sat") == 1
    assert rouge_l("a b c", "b c d e") == rouge_l("b c d e", "a b c")


@pytest.mark.parametrize(("said", "wanted"), [("", "a"), ("a", ""), ("", ""), ("...", "...")])
def test_a_text_without_words_has_nothing_in_common(said, wanted):
    assert rouge_l(said, wanted) == 0


def test_words_may_be_in_any_script():
    assert rouge_words("Naïve Größe, слово_два!") == ["naïve", "größe", "слово", "два"]
