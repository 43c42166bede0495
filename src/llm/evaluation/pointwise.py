"""A judge's score for each response."""

import re
from collections.abc import Sequence
from typing import Any

from llm.evaluation.confidence import bootstrap
from llm.evaluation.judge import Question

TASK = """\
You grade how well a response carries out an instruction. The reference shows one good response; another \
can be as good in other words. Grade what the response says and whether it is what was asked for, not its \
length or its style. 100 is as good as the reference or better, 75 is right with small faults, 50 is half \
right, 25 is mostly wrong, 0 is wrong, empty or about something else."""
FORM = 'one JSON object of exactly this shape, {"score": N}, where N is an integer from 0 to 100'
ANSWER = re.compile(r'\s*\{\s*"score"\s*:\s*(100|[1-9]?[0-9])\s*\}\s*')


def ask_score(*, instruction: str, reference: str, response: str) -> Question:
    """Return the question for a score from 0 to 100."""
    texts = {"instruction": instruction, "reference": reference, "response": response}
    return Question(TASK, texts, FORM, parse_score)


def parse_score(answer: str) -> int | None:
    """Return the score in an answer; None if the answer has another form."""
    found = ANSWER.fullmatch(answer)
    return int(found[1]) if found else None


def summarize_scores(scores: Sequence[int | None]) -> dict[str, Any]:
    """Summarize the scores of all responses.

    Returns:
        Counts of `scored` and `unparsed` responses; the mean `score` with its interval; and `score_unparsed_as_0`,
        because the unparsed responses may be the worst.
    """
    scored = [each for each in scores if each is not None]
    return {
        "scored": len(scored),
        "unparsed": len(scores) - len(scored),
        "score": bootstrap(scored)._asdict(),
        "score_unparsed_as_0": bootstrap([each or 0 for each in scores])._asdict(),
    }
