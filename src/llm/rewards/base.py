"""The interface of a reward."""

import math
from collections.abc import Callable, Sequence

from llm.data.examples.template import ChatTemplate

# (prompts, responses, references) -> scores, higher is better. A prompt is the text that the model read,
# including the template; a reference is the response in the data, empty if there is none.
RewardFunction = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]


def require_template(reward: RewardFunction, template: ChatTemplate | None) -> None:
    """Require the template that the reward was trained with, None for bare prompts.

    A reward with a template of its own has a method `require_template`.

    Raises:
        ValueError: the template is another.
    """
    if (require := getattr(reward, "require_template", None)) is not None:
        require(template)


def checked_scores(
    reward: RewardFunction,
    prompts: Sequence[str],
    responses: Sequence[str],
    references: Sequence[str],
) -> list[float]:
    """Return the scores of a reward, which may be user code, after checking them.

    Raises:
        ValueError: the number of scores is not that of the responses, or one is not finite.
    """
    scores = [float(each) for each in reward(prompts, responses, references)]
    if len(scores) != len(responses):
        raise ValueError(
            f"the reward gave {len(scores)} scores for {len(responses)} responses; return one for each"
        )
    wrong = [at for at, each in enumerate(scores) if not math.isfinite(each)]
    if wrong:
        raise ValueError(
            f"the reward gave {scores[wrong[0]]} for {responses[wrong[0]]!r}; return a finite number"
        )
    return scores
