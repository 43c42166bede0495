import pytest

from llm.rewards.contains import contains


def of(*responses, text):
    return contains([""] * len(responses), responses, [""] * len(responses), text=text)


def test_a_text_is_looked_for_in_any_case():
    assert of("Yes, please.", "no", "PLEASE", text="please") == [1, 0, 1]


def test_an_empty_text_would_be_in_everything():
    with pytest.raises(ValueError, match="text: is empty"):
        of("a", text="")
