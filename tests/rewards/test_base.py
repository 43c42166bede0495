"""Values of a user's reward are checked before use."""

import pytest

from llm.rewards.base import checked_scores


def test_scores_are_converted_to_floats():
    assert checked_scores(
        lambda prompts, responses, references: [True, 2],
        prompts=["", ""],
        responses=["a", "b"],
        references=["", ""],
    ) == [1.0, 2.0]


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_wrong_number_of_scores_and_non_finite_scores_are_refused(scores):
    with pytest.raises(ValueError, match="the reward gave"):
        checked_scores(
            lambda prompts, responses, references: scores,
            prompts=["", ""],
            responses=["a", "b"],
            references=["", ""],
        )
