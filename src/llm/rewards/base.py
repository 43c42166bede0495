"""What a reward is: prompts, responses and the data's own answers in, a score a response out."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from llm.data.examples.template import ChatTemplate

# (prompts, responses, references) -> scores, higher is better. A prompt is the text that the model read,
# the template's included; a reference is the data's answer to it, empty where there is none.
RewardFunction = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]


@runtime_checkable
class ReadsTemplate(Protocol):
    """A reward that has learned from prompts in the words of one template."""

    def require_template(self, template: ChatTemplate | None) -> None:
        """Let pass prompts in the words of that template.

        Raises:
            ValueError: they are in those of another, or of none.
        """
        ...


def require_template(reward: RewardFunction, template: ChatTemplate | None) -> None:
    """Let pass a template, or None for bare prompts, that the reward can read.

    Raises:
        ValueError: it has learned from another.
    """
    if isinstance(reward, ReadsTemplate):
        reward.require_template(template)


def checked_scores(
    reward: RewardFunction,
    prompts: Sequence[str],
    responses: Sequence[str],
    references: Sequence[str],
) -> list[float]:
    """What a reward gives, which may be anybody's code, seen to be what it should be.

    Raises:
        ValueError: there are not as many scores as responses, or one is not finite.
    """
    scores = [float(each) for each in reward(prompts, responses, references)]
    if len(scores) != len(responses):
        raise ValueError(f"the reward gave {len(scores)} scores for {len(responses)} responses")
    wrong = [at for at, each in enumerate(scores) if not math.isfinite(each)]
    if wrong:
        raise ValueError(f"the reward gave {scores[wrong[0]]} for {responses[wrong[0]]!r}")
    return scores
