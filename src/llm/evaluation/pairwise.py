"""A judge's choice between two responses to each instruction, asked in both orders.

Judges favour a place (Zheng et al. 2023, "Judging LLM-as-a-judge", section 3.3): so a response wins only
if it is chosen in the first place and in the second, and how often the place decided is told.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

from llm.evaluation.confidence import wilson
from llm.evaluation.judge import Question

TASK = """\
You compare two responses, A and B, to the same instruction, and say which carries it out better. The \
reference shows one good response; another can be as good in other words. Compare what the responses say \
and whether it is what was asked for, not their length, their style or the order in which they are shown. \
Where neither is better, say tie."""
FORM = 'one JSON object of exactly this shape, {"better": "X"}, where X is A, B or tie'
ANSWER = re.compile(r'\s*\{\s*"better"\s*:\s*"(A|B|tie)"\s*\}\s*')

Choice = Literal["A", "B", "tie"]
Choices = tuple[Choice | None, Choice | None]


def both_orders(
    *, instruction: str, reference: str, ours: str, theirs: str
) -> tuple[Question, Question]:
    """Ask which is better: with ours as A, then with ours as B."""

    def ask(first: str, second: str) -> Question:
        texts = {"instruction": instruction, "reference": reference}
        return Question(
            TASK, texts | {"response A": first, "response B": second}, FORM, parse_choice
        )

    return ask(ours, theirs), ask(theirs, ours)


def parse_choice(answer: str) -> Choice | None:
    """The choice that an answer is, or None where it is anything else or anything more."""
    found = ANSWER.fullmatch(answer)
    return found[1] if found else None  # pyright: ignore[reportReturnType]


def summarize_choices(choices: Sequence[Choices]) -> dict[str, Any]:
    """What the choices on all instructions come to, seen from our side.

    Args:
        choices: for each instruction that with ours as A, and that with ours as B.

    Returns:
        Counts of `wins`, `ties` and `losses`, and of `unparsed` pairs, of which an order or both could not
        be read; `win_rate` over those read, a tie being half a win, with its interval;
        `win_rate_unparsed_as_lost`; and `position_bias`: how often the same place was chosen in both
        orders, with the counts `first_twice` and `second_twice`.
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
