"""Responses and references: read as runs write them, measured, and matched by instruction."""

import json

import pytest

from llm.config.errors import ConfigError
from llm.evaluation.response_scores import (
    Response,
    match_responses,
    paired_difference,
    quality,
    read_responses,
    responses_of,
)


def row(instruction="Add.", given="", response="3", **more):
    return {
        "instruction": instruction,
        "input": given,
        "reference": "3",
        "response": response,
    } | more


def test_a_question_is_the_instruction_with_its_input_or_the_whole_conversation():
    turns = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Add.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    rows = [
        row(),
        row(given="1, 2"),
        row(messages=[{"role": "user", "content": "Add.\n### Input:\n1, 2"}], given="1, 2"),
        row(messages=messages),
    ]
    assert [each.instruction for each in responses_of(rows)] == [
        "Add.",
        "Add.\n\n1, 2",
        "Add.\n\n1, 2",
        "user: Hi.\n\nassistant: Hello.\n\nuser: Add.",
    ]


@pytest.mark.parametrize(
    "text", ["[1]", "{", '[{"instruction": "Add."}]', '{"a": 1}', "null", "\udc80"]
)
def test_file_without_responses_is_named(tmp_path, text):
    file = tmp_path / "responses.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"responses\.json: contains no responses"):
        read_responses(file)


def test_a_file_is_read(tmp_path):
    file = tmp_path / "responses.json"
    file.write_text(json.dumps([row()]))
    assert read_responses(file) == [Response("Add.", "3", "3")]


def test_quality_is_a_mean_over_responses():
    found = quality(
        [Response("", "a b", "A b."), Response("", "a b", "a c"), Response("", "a b", "x")]
    )
    assert found["answers"] == 3
    assert found["rouge_l"]["mean"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["exact_match"]["mean"] == pytest.approx(1 / 3)


def test_responses_are_matched_once_each_in_the_order_of_the_first_run():
    ours = [Response(each, "r", f"ours {n}") for n, each in enumerate("aabc")]
    theirs = [Response(each, "r", f"theirs {n}") for n, each in enumerate("cada")]
    pairs = [(own.response, other.response) for own, other in match_responses(ours, theirs)]
    assert pairs == [("ours 0", "theirs 1"), ("ours 1", "theirs 3"), ("ours 3", "theirs 0")]
    with pytest.raises(ConfigError, match="no instruction in common"):
        match_responses(ours, [Response("a", "another reference", "")])


def test_paired_difference_finds_a_small_gain_on_every_response():
    """A small gain on every response is significant, however much the scores of the responses vary."""
    words = "a b c d e f g h i j".split()
    pairs = []
    for right in range(1, 10):
        response = Response("", " ".join(words), " ".join(words[: right + 1]))
        pairs.append((response, response._replace(response=" ".join(words[:right]))))
    found = paired_difference(pairs)
    assert found["compared"] == 9
    assert found["rouge_l_gain"]["low"] > 0
    assert found["rouge_l_gain"]["high"] < 0.2
