import pytest

from llm.rewards.length import length


def of(*responses, words):
    return length([""] * len(responses), responses, [""] * len(responses), words=words)


def test_it_is_best_met_and_never_negative():
    found = of("a b c d", "a b c", "a b c d e", "", "a " * 99, words=4)
    assert found == [1.0, 0.75, 0.75, 0.0, 0.0]


def test_no_words_cannot_be_wanted():
    with pytest.raises(ValueError, match="words=0: is too small; use 1 or more"):
        of("a", words=0)
