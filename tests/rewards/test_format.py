import pytest

from llm.rewards.format import matches


def of(*responses, pattern):
    return matches([""] * len(responses), responses, [""] * len(responses), pattern=pattern)


def test_whole_response_must_match_the_pattern():
    found = of(" It is so.\n", "It is so. And so.", "it is.", "So", pattern="[A-Z][^.!?]*[.!?]")
    assert found == [1, 0, 0, 0]


def test_invalid_pattern_is_refused():
    with pytest.raises(ValueError, match=r"pattern: .* is not a regular expression"):
        of("a", pattern="(")
