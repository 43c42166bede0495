"""JSON rows: equal to those of Python's json module, each with its first line number."""

import json
from pathlib import Path

import pytest

from llm.data.errors import DataError
from llm.data.json_rows import read_json_array, read_json_lines, refuse_one_object

FILE = Path("rows.json")
ROWS = [{"a": 1, "b": [1, {"c": "x"}]}, {"a": "]\n,{ü"}, {}]


@pytest.fixture
def reports() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def report(reports):
    return lambda where, what: reports.append((where, what))


def test_lines_are_read_with_their_numbers(report, reports):
    text = f"{json.dumps(ROWS[0])}\n\n  \n{json.dumps(ROWS[1])}\r\n{json.dumps(ROWS[2])}"
    found = list(read_json_lines(FILE, text.split("\n"), report=report))
    assert [values for _, values in found] == ROWS
    assert [where for where, _ in found] == [f"rows.json, line {n}" for n in (1, 4, 5)]
    assert reports == []


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_array_is_read_like_pythons_json_module(indent, report, reports):
    text = f"\n {json.dumps(ROWS, indent=indent)} \n"
    assert (
        [values for _, values in read_json_array(FILE, text, report=report)]
        == json.loads(text)
        == ROWS
    )
    assert reports == []


def test_elements_of_an_array_are_named_by_the_line_they_begin_on(report):
    found = list(read_json_array(FILE, '[{"a":\n1},\n\n{"b": 2}, {"c": 3}\n]', report=report))
    assert [where for where, _ in found] == [f"rows.json, line {n}" for n in (1, 4, 4)]


def test_an_empty_array_has_no_rows(report):
    assert list(read_json_array(FILE, "[ \n ]", report=report)) == []


def test_lines_and_elements_that_are_not_objects_are_reported(report, reports):
    lines = ['{"a": 1}', "3", "{oops", ""]
    assert [values for _, values in read_json_lines(FILE, lines, report=report)] == [{"a": 1}]
    assert [values for _, values in read_json_array(FILE, '[{"a": 1}, null]', report=report)] == [
        {"a": 1}
    ]
    wheres, whats = zip(*reports, strict=True)
    assert wheres == tuple(f"rows.json, line {n}" for n in (2, 3, 1))
    assert whats[0] == "int is not a JSON object; write an object"
    assert whats[1].startswith("not JSON (")
    assert whats[2] == "NoneType is not a JSON object; write an object"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "line 1: not JSON"),
        ('[{"a": 1}\n{"b": 2}]', "line 1: not JSON .no comma after this element"),
        ('[{"a": 1},\n{"b": }]', "line 2: not JSON"),
        ("[{}] x", "there is more text after the array"),
        ("[{},]", "line 1: not JSON"),
    ],
)
def test_an_array_that_cannot_be_read_to_its_end_is_refused(text, message, report):
    with pytest.raises(DataError, match=message):
        list(read_json_array(FILE, text, report=report))


def test_one_object_over_several_lines_is_refused_with_the_key_of_its_rows():
    text = json.dumps({"version": 1, "rows": ROWS}, indent=1)
    with pytest.raises(DataError, match=r"one JSON object, not rows.*the array under rows"):
        refuse_one_object(FILE, text)
