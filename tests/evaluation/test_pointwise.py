"""Scores: only the requested format counts, and unreadable replies are reported."""

import math

import pytest

from llm.evaluation.pointwise import FORM, TASK, ask_score, parse_score, summarize_scores


@pytest.mark.parametrize("number", [0, 1, 9, 10, 99, 100])
def test_requested_form_is_parsed(number):
    assert parse_score(f'{{"score": {number}}}') == number
    assert parse_score(f'\n {{ "score" :{number} }}\n') == number


@pytest.mark.parametrize(
    "answer",
    [
        *("", "80", "score: 80", '{"score": 101}', '{"score": -1}', '{"score": 80.5}'),
        *('{"score": "80"}', '{"score": 080}', '{"score": true}', '{"score": null}', "{'score': 80}"),
        *('{"Score": 80}', '{"score": 80, "score": 100}', '{"score": 80, "reason": "good"}'),
        *('{"score": 80} and more', 'I say {"score": 80}', '{"score": 80}{"score": 90}'),
        *('```json\n{"score": 80}\n```', '[{"score": 80}]', '{"score": 8e1}', '{"score": ٨}'),
    ],
)  # fmt: skip
def test_replies_of_another_form_are_not_parsed(answer):
    assert parse_score(answer) is None


def test_the_question_shows_all_three_texts_and_the_form():
    rules, shown = (
        m["content"]
        for m in ask_score(instruction="do it", reference="done well", response="done").messages()
    )
    assert TASK in rules
    assert FORM in rules
    for name, text in (("instruction", "do it"), ("reference", "done well"), ("response", "done")):
        assert f"{name} begins]\n{text}\n[" in shown


def test_unparsed_answers_are_counted():
    found = summarize_scores([80, None, 60, 100, None])
    assert (found["scored"], found["unparsed"]) == (3, 2)
    assert found["score"]["mean"] == 80
    assert found["score_unparsed_as_0"]["mean"] == 48
    assert 60 <= found["score"]["low"] < 80 < found["score"]["high"] <= 100


def test_mean_of_no_scores_is_nan():
    found = summarize_scores([None, None])
    assert math.isnan(found["score"]["mean"])
    assert found["score_unparsed_as_0"]["mean"] == 0
