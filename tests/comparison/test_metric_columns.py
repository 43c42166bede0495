"""Format of the numbers in a table: their units, and the number of digits, which depends on the interval."""

import math

import pytest

from llm.comparison.interval import MeanInterval
from llm.comparison.metric_columns import REPEATED, metric_columns

COLUMNS = {column.name: column for column in metric_columns(["test/accuracy"])}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("final_loss", 3.14159, "3.1416"),
        ("test/accuracy", 0.5, "0.5000"),
        ("tokens_per_second", 12345.6, "12,346"),
        ("mfu", 0.2512, "25.1%"),
        ("peak_gib", 1.005, "1.00 GiB"),
    ],
)
def test_a_number_is_written_in_its_own_unit(name, value, text):
    assert COLUMNS[name].text(MeanInterval(value)) == text


@pytest.mark.parametrize(
    ("margin", "text"),
    [
        (0.0234, "3.142 ± 0.023"),
        (0.5, "3.14 ± 0.50"),
        (2.0, "3.1 ± 2.0"),
        (20.0, "3 ± 20"),
        (1e-9, "3.141590 ± 0.000000"),
        (0.0, "3.1416 ± 0.0000"),
        (math.inf, "3.1416"),
        (None, "3.1416"),
    ],
)
def test_number_has_as_many_decimals_as_two_digits_of_its_margin(margin, text):
    assert COLUMNS["final_loss"].text(MeanInterval(3.14159, margin)) == text


def test_tokens_per_second_have_no_interval():
    assert "±" not in COLUMNS["tokens_per_second"].text(MeanInterval(100.0, 5.0))


def test_a_missing_number_is_a_dash():
    assert COLUMNS["mfu"].text(None) == "–"


def test_metrics_of_a_task_are_between_quality_and_speed():
    names = list(COLUMNS)
    assert names.index("bits_per_byte") < names.index("test/accuracy") < names.index("seconds")
    assert len(names) == len(set(names))
    assert not set(REPEATED) & set(names)
