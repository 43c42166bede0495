import math

import pytest

from llm.comparison.interval import mean_interval, quantile

# Two-sided quantiles of Student's t, from Abramowitz and Stegun (table 26.10); textbooks have the same table.
PUBLISHED = [
    *((0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 3, 3.182), (0.95, 4, 2.776), (0.95, 9, 2.262)),
    *((0.95, 30, 2.042), (0.99, 2, 9.925), (0.99, 5, 4.032), (0.5, 3, 0.765), (0.9, 120, 1.658)),
]


@pytest.mark.parametrize(("confidence", "freedom", "t"), PUBLISHED)
def test_quantiles_are_those_of_the_tables(confidence, freedom, t):
    assert quantile(confidence, freedom) == pytest.approx(t, abs=6e-4)


def test_quantile_of_many_repetitions_approaches_the_normal_distribution():
    assert quantile(0.95, 5000) == pytest.approx(1.96, abs=1e-3)


def test_an_interval_is_t_standard_errors_wide():
    found = mean_interval([1.0, 2.0, 3.0], 0.95)
    assert found.mean == 2.0
    assert found.margin == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)


def test_a_single_repetition_has_no_interval():
    assert mean_interval([2.5]) == (2.5, None)


def test_equal_repetitions_have_a_margin_of_zero():
    assert mean_interval([2.5, 2.5, 2.5]) == (2.5, 0.0)


@pytest.mark.parametrize("odd", [math.inf, math.nan])
def test_values_that_are_not_finite_have_no_interval(odd):
    found = mean_interval([1.0, odd])
    assert not math.isfinite(found.mean)
    assert found.margin is None
