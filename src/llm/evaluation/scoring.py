"""Scores of a run's responses: against references, by a judge, and against another run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm.evaluation import pairwise, pointwise
from llm.evaluation.judge import Judgements, Question
from llm.evaluation.openai_client import OpenAI
from llm.evaluation.response_scores import Response, match_responses, paired_difference, quality
from llm.terminal.bars import progress_bar


def rate(
    responses: Sequence[Response],
    *,
    theirs: Sequence[Response] | None,
    judge: OpenAI | None,
    file: Path,
) -> dict[str, Any]:
    """Score responses against their references, by a judge, and against another run's.

    Args:
        responses: the run's responses.
        theirs: another run's responses, if any.
        judge: the model that judges, if any.
        file: the file of the judge's answers.
    """
    report = {"quality": quality(responses)}
    pairs = match_responses(responses, theirs) if theirs is not None else []
    if pairs:
        report["against"] = paired_difference(pairs)
    if judge is not None:
        judgements = Judgements(judge, file)
        questions = [pointwise.ask_score(**each._asdict()) for each in responses]
        scores = ask(judgements, questions, what="scoring")
        report["judge"] = {"judge": judge.model, "address": judge.address}
        report["judge"] |= pointwise.summarize_scores(scores)
        if pairs:
            questions = [each for pair in pairs for each in pairwise.both_orders(*pair)]
            choices = ask(judgements, questions, what="comparing")
            both = list(zip(choices[::2], choices[1::2], strict=True))
            report["against"] |= pairwise.summarize_choices(both)
    return report


def ask(judgements: Judgements, questions: Sequence[Question], *, what: str) -> list[Any]:
    """Return the verdicts on some questions, with a progress bar."""
    with progress_bar() as bar:
        return list(bar.track(judgements.ask(questions), len(questions), description=what))
