import pytest

from llm.rewards.length import length


def of(*responses, words):
    return length([""] * len(responses), responses, [""] * len(responses), words=words)


def test_reward_is_highest_at_the_wanted_length_and_never_negative():
    found = of("a b c d", "a b c", "a b c d e", "", "a " * 99, words=4)
    assert found == [1.0, 0.75, 0.75, 0.0, 0.0]


def test_length_of_zero_words_is_refused():
    with pytest.raises(ValueError, match="words=0: is too small; use 1 or more"):
        of("a", words=0)
