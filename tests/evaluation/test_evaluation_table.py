"""The table and the file that `llm evaluate` writes."""

import json
import math

import pytest
from rich.console import Console

from llm.evaluation.evaluation_table import plain_report, report_table, row, shown

INTERVAL = {"mean": 0.5, "low": 0.25, "high": 0.75}


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "none"), (0.123456, "0.1235"), (12345, "12,345"), (1e-7, "1e-07"), (math.nan, "nan")],
)
def test_numbers_are_shown_in_four_digits_and_counts_whole(value, text):
    assert shown(value) == text


def test_a_row_is_a_name_a_number_or_a_number_with_its_interval():
    assert row("judge", "gpt") == ("judge gpt", "", "")
    assert row("rows", 1200) == ("rows", "1,200", "")
    assert row("accuracy", INTERVAL) == ("accuracy", "0.5", "0.25 to 0.75")
    assert row("accuracy", INTERVAL | {"low": None, "high": None}) == ("accuracy", "0.5", "")


def test_the_table_holds_every_section_that_there_is():
    report = {"run": "mine", "part": "test", "metrics": {"loss": 1.5}, "quality": {"f1": INTERVAL}}
    console = Console(width=80)
    with console.capture() as capture:
        console.print(report_table(report))
    printed = capture.get()
    assert printed.startswith("mine, test")
    cells = {line.split()[1]: line.split()[3] for line in printed.splitlines() if line[0] in "│"}
    assert cells == {"loss": "1.5", "f1": "0.5"}


def test_non_finite_numbers_are_null_in_the_file():
    report = {"a": math.inf, "b": {"c": math.nan, "d": 1.0}, "e": "x", "f": None}
    assert json.loads(json.dumps(plain_report(report), allow_nan=False)) == {
        "a": None,
        "b": {"c": None, "d": 1.0},
        "e": "x",
        "f": None,
    }
