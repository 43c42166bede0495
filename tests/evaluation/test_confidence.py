"""Confidence intervals equal formulas and published values, and have their nominal coverage."""

import math
import random

import pytest

from llm.evaluation.confidence import bootstrap, wilson


def test_the_bootstrap_is_near_the_normal_interval_on_many_values():
    drawn = random.Random(0)
    values = [drawn.gauss(50, 10) for _ in range(400)]
    mean = sum(values) / 400
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / 399 / 400)
    found = bootstrap(values)
    assert found.mean == pytest.approx(mean)
    assert found.low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)
    assert found == bootstrap(values), "the same values give the same interval"


def test_fewer_than_two_values_have_no_interval():
    assert bootstrap([3.0]).mean == 3
    assert math.isnan(bootstrap([3.0]).low)
    assert all(math.isnan(each) for each in bootstrap([]))
    assert all(math.isnan(each) for each in wilson(0, 0))


def test_wilson_solves_its_equation():
    """The ends are the rates from which the observed rate is 1.96 standard errors away."""
    found = wilson(7, 10)
    for rate in (found.low, found.high):
        assert abs(0.7 - rate) == pytest.approx(1.959964 * math.sqrt(rate * (1 - rate) / 10))


def test_wilson_interval_of_no_and_all_successes_has_the_published_bounds():
    assert wilson(0, 10)[:2] == (0, 0)
    assert wilson(0, 10).high == pytest.approx(0.2775, abs=1e-4)
    assert wilson(10, 10).low == pytest.approx(0.7225, abs=1e-4)
    assert wilson(10, 10).high == pytest.approx(1)


def test_the_wilson_interval_has_its_nominal_coverage():
    drawn = random.Random(0)
    for truth in (0.05, 0.5):
        held = 0
        for _ in range(2000):
            low, high = wilson(sum(drawn.random() < truth for _ in range(40)), 40)[1:]
            held += low <= truth <= high
        assert 0.93 <= held / 2000 <= 0.985
