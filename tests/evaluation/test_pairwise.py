"""Pairwise comparison: a win needs both orders, so a preference for a position has no effect."""

import re

import pytest

from llm.evaluation.judge import Judgements
from llm.evaluation.pairwise import both_orders, parse_choice, summarize_choices
from llm.evaluation.response_scores import Response


@pytest.mark.parametrize("choice", ["A", "B", "tie"])
def test_requested_form_is_parsed(choice):
    assert parse_choice(f'{{"better": "{choice}"}}\n') == choice


@pytest.mark.parametrize(
    "answer",
    [
        *("A", '{"better": A}', '{"better": "a"}', '{"better": "C"}', '{"better": "A", "why": ""}'),
        *('"A"', 'A is better: {"better": "A"}', '{"better": "A"}{"better": "B"}', ""),
    ],
)
def test_replies_of_another_form_are_not_parsed(answer):
    assert parse_choice(answer) is None


def test_both_orders_show_the_same_texts_in_exchanged_places():
    ours, theirs = (Response("do it", "done well", each) for each in ("ours", "theirs"))
    first, second = both_orders(ours, theirs)
    assert list(first.texts.values()) == ["do it", "done well", "ours", "theirs"]
    assert list(second.texts.values()) == ["do it", "done well", "theirs", "ours"]
    assert list(first.texts) == list(second.texts), "the names do not show which run wrote a text"


def test_win_needs_both_orders():
    choices = [
        *[("A", "B")] * 3,  # ours in both orders
        ("B", "A"),  # theirs in both orders
        *[("A", "A")] * 2,  # the first position in both orders
        ("B", "B"),
        ("tie", "tie"),
        ("A", "tie"),
        (None, "B"),
        ("A", None),
    ]
    found = summarize_choices(choices)
    assert (found["wins"], found["losses"], found["ties"], found["unparsed"]) == (3, 1, 5, 2)
    assert found["win_rate"]["mean"] == (3 + 5 / 2) / 9
    assert found["win_rate_unparsed_as_lost"]["mean"] == (3 + 5 / 2) / 11
    assert found["position_bias"]["mean"] == 3 / 9
    assert (found["first_twice"], found["second_twice"]) == (2, 1)
    assert found["win_rate"]["low"] < found["win_rate"]["mean"] < found["win_rate"]["high"]


def _judged(stand_in, tmp_path, prefer):
    def answer(request):
        shown = re.findall(r"response [AB] begins\]\n(.*)\n\[", request["messages"][1]["content"])
        return f'{{"better": "{prefer(*shown)}"}}'

    pairs = [
        both_orders(
            Response(f"Say {n}.", str(n), f"ours {n}"),
            Response(f"Say {n}.", str(n), f"theirs, longer {n}"),
        )
        for n in range(6)
    ]
    asked = [question for pair in pairs for question in pair]
    judgements = Judgements(stand_in(answer).judge(), tmp_path / "judgements.jsonl")
    verdicts = list(judgements.ask(asked))
    return summarize_choices(list(zip(verdicts[::2], verdicts[1::2], strict=True)))


def test_judge_that_prefers_a_position_finds_no_winner(stand_in, tmp_path):
    found = _judged(stand_in, tmp_path, lambda first, second: "A")
    assert (found["wins"], found["losses"], found["ties"]) == (0, 0, 6)
    assert found["position_bias"]["mean"] == 1


def test_the_winner_does_not_depend_on_the_order_of_the_answers(stand_in, tmp_path):
    found = _judged(stand_in, tmp_path, lambda a, b: "A" if len(a) > len(b) else "B")
    assert (found["wins"], found["losses"]) == (0, 6)
    assert found["position_bias"]["mean"] == 0
