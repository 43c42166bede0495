"""A judge's choice between two responses to each instruction, asked in both orders.

Judges prefer one position (Zheng et al. 2023, "Judging LLM-as-a-judge", section 3.3). A response wins only if it is
chosen in both.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

from llm.evaluation.confidence import wilson
from llm.evaluation.judge import Question
from llm.evaluation.response_scores import Response

TASK = """\
You compare two responses, A and B, to the same instruction, and say which carries it out better. The \
reference shows one good response; another can be as good in other words. Compare what the responses say \
and whether it is what was asked for, not their length, their style or the order in which they are shown. \
Where neither is better, say tie."""
FORM = 'one JSON object of exactly this shape, {"better": "X"}, where X is A, B or tie'
ANSWER = re.compile(r'\s*\{\s*"better"\s*:\s*"(A|B|tie)"\s*\}\s*')

Choice = Literal["A", "B", "tie"]
Choices = tuple[Choice | None, Choice | None]


def both_orders(ours: Response, theirs: Response) -> tuple[Question, Question]:
    """Return the question which of two responses is better, once with ours as A and once with ours as B."""

    def ask(first: str, second: str) -> Question:
        texts = {"instruction": ours.instruction, "reference": ours.reference}
        texts |= {"response A": first, "response B": second}
        return Question(TASK, texts, FORM, parse_choice)

    return ask(ours.response, theirs.response), ask(theirs.response, ours.response)


def parse_choice(answer: str) -> Choice | None:
    """Return the choice in an answer; None if the answer has another form."""
    found = ANSWER.fullmatch(answer)
    return found[1] if found else None  # pyright: ignore[reportReturnType]


def summarize_choices(choices: Sequence[Choices]) -> dict[str, Any]:
    """Summarize the choices on all instructions.

    Args:
        choices: for each instruction the choice with ours as A, and with ours as B.

    Returns:
        Counts of our `wins`, `ties` and `losses`, and of `unparsed` pairs; `win_rate` over the parsed pairs with its
        interval, a tie being half a win; `win_rate_unparsed_as_lost`; and `position_bias`, the rate at which the same
        position was chosen in both orders, with the counts `first_twice` and `second_twice`.
    """
    read = [pair for pair in choices if None not in pair]
    wins, losses = read.count(("A", "B")), read.count(("B", "A"))
    first, second = read.count(("A", "A")), read.count(("B", "B"))
    ties = len(read) - wins - losses
    return {
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "unparsed": len(choices) - len(read),
        "win_rate": wilson(wins + ties / 2, len(read))._asdict(),
        "win_rate_unparsed_as_lost": wilson(wins + ties / 2, len(choices))._asdict(),
        "position_bias": wilson(first + second, len(read))._asdict(),
        "first_twice": first,
        "second_twice": second,
    }
