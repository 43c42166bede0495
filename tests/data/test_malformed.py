"""Messages about malformed rows."""

import pytest

from llm.data.errors import DataError
from llm.data.malformed import Malformed


def collected(policy, *problems):
    malformed = Malformed(policy)
    for line, problem in enumerate(problems, start=2):
        malformed.add(f"a.csv, line {line}", problem)
    return malformed


def closed(malformed, usable):
    with pytest.raises(DataError) as error:
        malformed.close("texts", usable)
    return error.value.problems


def test_close_without_malformed_rows_returns_zero():
    assert collected("stop").close("texts", 5) == 0


def test_rows_that_fail_alike_are_one_line_with_a_remedy():
    (line,) = closed(collected("stop", *[f"{n} fields, not 2" for n in range(3, 15)]), 30)
    assert "12 of 42 rows" in line
    assert "data.malformed=skip" in line
    assert line.endswith("all alike, a.csv, line 2: 3 fields, not 2")


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_skipping_is_not_advised_if_no_row_can_be_used(policy):
    (line,) = closed(collected(policy, "no text", "no text"), 0)
    assert "no row can be used" in line
    assert "skip" not in line


def test_ten_kinds_of_problems_are_listed_with_their_counts():
    problems = ["no text", *(f"label {chr(97 + n)}" for n in range(12)), "no text"]
    summary, *lines = closed(collected("stop", *problems), 1)
    assert "14 of 15 rows" in summary
    assert lines[0] == "a.csv, line 2: no text (and 1 more like it)"
    assert lines[1:10] == [f"a.csv, line {n + 3}: label {chr(97 + n)}" for n in range(9)]
    assert lines[10:] == ["… and 3 more"]


def test_skip_warns_once_with_the_count():
    malformed = collected("skip", "empty text", "empty text")
    with pytest.warns(UserWarning, match=r"texts: 2 left out.*line 2: empty text") as warned:
        assert malformed.close("texts", 1) == 2
    assert len(warned) == 1
