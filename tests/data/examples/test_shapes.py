"""Rows in the formats of other libraries, read by a finetuning run."""

import json
import warnings
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from small_runs import command_of

from llm.config.errors import ConfigError
from llm.nn.ignore_index import IGNORE_INDEX
from llm.training import lifecycle

CASES = Path(__file__).parents[2] / "cases"


@cache
def composed(experiment, *words):
    """The checked configuration of `llm train`."""
    small = ("size=nano", "size.context_length=512", "tokenizer=byte", "weights=scratch")
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", [f"experiment={experiment}", "data.path=x", *small, *words])
    command_of(config)
    return config


@pytest.fixture
def prepared(tmp_path):
    """prepared(experiment, rows, …): return the data module with which `llm train` reads these rows."""

    def prepared(experiment, rows, *words):
        path = rows
        if not isinstance(rows, Path):
            path = tmp_path / "rows.json"
            path.write_text(json.dumps(rows))
        config = deepcopy(composed(experiment, *words))
        config.data.path = str(path)
        return lifecycle.prepare_data(config, None)

    return prepared


def talk(example):
    return [message[:2] for message in example.messages]


def learned(data, example):
    row = data.encode(example)
    return data.tokenizer.decode([token for token in row["targets"] if token != IGNORE_INDEX])


def first(data):
    """Return the example of the first row of the file."""
    examples = [example for part in data.raw.values() for example in part]
    return min(examples, key=lambda example: int(example.where.rpartition(" ")[2]))


SYSTEM = ("system", "You are terse.")


@pytest.mark.parametrize(
    ("case", "messages"),
    [
        ("alpaca_system", [SYSTEM, ("user", "Add 0 and 1."), ("assistant", "1")]),
        (
            "alpaca_history",
            [
                ("user", "hi"),
                ("assistant", "hello"),
                ("user", "Add 0 and 1."),
                ("assistant", "1"),
            ],
        ),
        ("sharegpt_system_field", [SYSTEM, ("user", "Add 0, 1"), ("assistant", "1")]),
        ("prompt_completion", [("user", "Add 0 and 1."), ("assistant", "1")]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*not used. id")
def test_every_field_that_changes_what_a_row_means_is_used(prepared, case, messages):
    data = prepared("instruct", CASES / f"{case}.json")
    assert talk(first(data)) == messages
    assert sum(map(len, data.raw.values())) == 40


def test_responses_of_earlier_turns_are_learned(prepared):
    data = prepared("instruct", CASES / "alpaca_history.json")
    assert learned(data, first(data)) == "hello<|im_end|>1<|im_end|>"


def test_fields_that_are_not_used_are_named_once_with_the_number_of_rows(prepared):
    with pytest.warns(UserWarning, match=r"fields that are not used: id \(40 rows\)") as warned:
        prepared("instruct", CASES / "sharegpt_system_field.json")
    assert len(warned) == 1
    turns = [
        {"role": "user", "content": "hi", "name": "Ann"},
        {"role": "assistant", "content": "ho"},
    ]
    rows = [{"messages": turns, "tools": ["f"] if n % 2 else None} for n in range(40)]
    with pytest.warns(UserWarning, match=r"not used: messages.name \(40 rows\), tools \(20 rows\)"):
        prepared("instruct", rows)


def test_fields_that_hold_nothing_are_not_named(prepared):
    rows = json.loads((CASES / "messages_extra.json").read_text())
    for row in rows:
        row["messages"][1]["weight"] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared("instruct", rows)


def test_turns_of_weight_0_are_not_learned(prepared):
    rows = json.loads((CASES / "messages_extra.json").read_text())
    further = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "Yes."}]
    data = prepared("instruct", [{"messages": row["messages"] + further} for row in rows])
    assert learned(data, first(data)) == "Yes.<|im_end|>"
    whole = [{"messages": [{**m, "weight": 1} for m in row["messages"]] + further} for row in rows]
    other = prepared("instruct", whole)
    assert learned(other, first(other)) == "1<|im_end|>Yes.<|im_end|>"
    assert other.fingerprint != data.fingerprint
    with pytest.raises(ConfigError, match=r"weight 0; use data\.loss_on=response"):
        prepared(
            "instruct",
            [{"messages": row["messages"] + further} for row in rows],
            "data.loss_on=all",
        )


def test_a_conversation_ends_with_the_last_response_to_learn(prepared):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    last = [turns[0], {**turns[1], "weight": 0}]
    data = prepared("instruct", [{"messages": turns + last}] * 40)
    assert talk(first(data)) == [("user", "a"), ("assistant", "b")]


def test_rows_in_which_all_responses_have_weight_0_are_refused_in_one_line(prepared):
    with pytest.raises(ConfigError, match="no response to learn") as error:
        prepared("instruct", CASES / "messages_extra.json", "data.malformed=skip")
    (line,) = error.value.problems
    assert "no row can be used" in line


def test_tools_are_written_by_a_template_that_has_a_place_for_them(prepared):
    data = prepared("instruct", CASES / "messages_tool.json")
    assert talk(first(data)) == [
        ("user", "Weather 0?"),
        ("assistant", ""),
        ("tool", "12 C"),
        ("assistant", "It is 12 C."),
    ]
    assert learned(data, first(data)) == "It is 12 C.<|im_end|>"
    assert "<|im_start|>tool\n12 C<|im_end|>" in data.template.render(first(data).messages)


@pytest.mark.parametrize("template", ["alpaca", "phi3"])
def test_tools_are_refused_by_file_and_row_by_other_templates(prepared, tmp_path, template):
    rows = json.loads((CASES / "messages_tool.json").read_text())
    rows[1:] = [{"instruction": "say", "output": "yes"}] * 39
    with pytest.raises(ConfigError, match=r"rows\.json, line 1: .*not support .* tools") as error:
        prepared("instruct", rows, f"data/template={template}")
    assert "data.malformed=skip" in str(error.value)
    with pytest.warns(UserWarning, match="1 left out"):
        prepared("instruct", rows, f"data/template={template}", "data.malformed=skip")


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": [{"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "a"}],
        },
        {"prompt": "\n\nHuman: q\n\nAssistant:", "completion": "a"},
        {"messages": "\n\nHuman: q\n\nAssistant: a"},
        {
            "conversations": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a"},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": ["a"]},
            ]
        },
    ],
)
def test_other_shapes_of_conversations_are_read(prepared, row):
    data = prepared("instruct", [row] * 40)
    assert talk(first(data)) == [("user", "q"), ("assistant", "a")]


def test_a_developer_is_the_system(prepared):
    turns = [("developer", "be"), ("user", "q"), ("assistant", "a")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}] * 40
    assert talk(first(prepared("instruct", rows)))[0] == ("system", "be")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"question": "q", "answer": "a"},
            r"'data\.columns=\{instruction: question, output: answer\}'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "parts of type image_url",
        ),
        (
            {"messages": [{"role": "user", "content": "q", "weight": 0.5}]},
            "weight is 0.5, not 0 or 1",
        ),
        ({"messages": [{"role": "user", "content": [1]}]}, "parts of type int"),
        (
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "tool_calls": [1]},
                ]
            },
            "a tool call is not text",
        ),
        (
            {"instruction": "q", "response": "a"},
            r"output is missing; .*data\.columns=\{output: …\}",
        ),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "history is not a list of pairs"),
        (
            {
                "system": "x",
                "messages": [{"role": "system", "content": "y"}, {"role": "user", "content": "q"}],
            },
            "system is given twice",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(prepared, row, problem):
    with pytest.raises(ConfigError, match=problem) as error:
        prepared("instruct", [row] * 40)
    assert len(error.value.problems) == 1


def test_a_mapping_names_each_field_once(prepared):
    with pytest.raises(ConfigError, match=r"columns: \['q', 'q'\] has a name twice"):
        prepared("instruct", [{"q": "a"}], "data.columns={instruction: q, output: q}")


def test_fields_are_named_by_a_mapping(prepared):
    rows = [{"question": "q", "answer": "a"}] * 40
    data = prepared("instruct", rows, "data.columns={instruction: question, output: answer}")
    assert talk(first(data)) == [("user", "q"), ("assistant", "a")]


USER, GOOD, BAD = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "assistant", "content": "b"},
)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"messages": [USER], "chosen": "a", "rejected": "b"},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
    ],
)
def test_other_shapes_of_pairs_are_read(prepared, row):
    data = prepared("prefer", [row] * 40)
    pair = first(data)
    assert ([m[:2] for m in pair.prompt], pair.chosen, pair.rejected) == ([("user", "q")], "a", "b")


def test_pairs_with_a_prompt_are_read(prepared):
    pair = first(prepared("prefer", CASES / "pref_prompt.json"))
    assert (pair.prompt[0].content, pair.chosen, pair.rejected) == ("Greet 0", "Good day 0", "go 0")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, BAD]},
            "in more than the last response",
        ),
        (
            {"prompt": "x", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            "prompt differs from the start of chosen",
        ),
        (
            {"q": "x", "good": "y", "bad": "z"},
            r"data\.columns=\{prompt: q, chosen: good, rejected: bad\}",
        ),
        (
            {"prompt": "q", "chosen": "a", "rejected": "a"},
            "chosen and rejected are the same in all 40",
        ),
    ],
)
def test_pairs_that_cannot_be_read_are_refused_in_one_line(prepared, row, problem):
    with pytest.raises(ConfigError, match=problem) as error:
        prepared("prefer", [row] * 40)
    assert len(error.value.problems) == 1


def test_a_column_of_labels_and_texts_is_found_behind_any_delimiter(prepared):
    data = prepared("classify", CASES / "semicolon.csv")
    assert data.classes == ["neg", "pos"]
    assert sum(map(len, data.raw.values())) == 80


def test_the_header_never_becomes_a_class(prepared):
    columns = ("data.text=v2", "data.label=v1", "data.encoding=latin-1")
    data = prepared("classify", CASES / "kaggle_like.csv", *columns)
    assert data.classes == ["ham", "spam"]
    assert first(data).text.startswith("£5 awful")
    with pytest.warns(UserWarning, match=r"not UTF-8 .*set data\.encoding to"):
        prepared("classify", CASES / "kaggle_like.csv", *columns[:2])
    with pytest.raises(ConfigError, match=r"'v1' is the label of this row alone, as in a header"):
        prepared(
            "classify", CASES / "kaggle_like.csv", "data.columns=[label,text,a,b,c]", columns[2]
        )


@pytest.mark.filterwarnings("ignore:.*not UTF-8")
def test_columns_that_are_not_there_are_named_in_one_line(prepared):
    with pytest.raises(ConfigError, match=r"are v1, v2; set data\.text and data\.label") as error:
        prepared("classify", CASES / "kaggle_like.csv")
    (line,) = error.value.problems
    assert "skip" not in line


def test_labels_that_differ_in_case_are_named(prepared):
    rows = [{"text": f"text {n}", "label": ("Ham", "ham", "spam")[n % 3]} for n in range(60)]
    with pytest.warns(UserWarning, match="differ only in case are different classes: Ham and ham"):
        assert prepared("classify", rows).classes == ["Ham", "ham", "spam"]


@pytest.mark.parametrize("part", ["validation", "test"])
def test_texts_that_are_all_held_out_are_refused_with_a_remedy(prepared, part):
    path = CASES / "semicolon.csv"
    with pytest.raises(ConfigError, match=rf"all 80 texts .*data\.{part}_path .*leave .* out"):
        prepared("classify", path, f"data.{part}_path={path}")


def test_conversations_that_are_trained_on_and_held_out_are_counted(prepared):
    path = CASES / "prompt_completion.json"
    with pytest.warns(UserWarning, match=r"data\.validation_path: \d+ of its 40 conversations"):
        prepared("instruct", path, f"data.validation_path={path}")
