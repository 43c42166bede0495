import pytest

from llm.rewards.contains import contains


def of(*responses, text):
    return contains([""] * len(responses), responses, [""] * len(responses), text=text)


def test_case_is_ignored():
    assert of("Yes, please.", "no", "PLEASE", text="please") == [1, 0, 1]


def test_empty_text_is_refused():
    with pytest.raises(ValueError, match="text: is empty"):
        of("a", text="")
