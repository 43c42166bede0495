"""Confidence intervals of a mean over seeds (Student's t)."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple


class MeanInterval(NamedTuple):
    """A mean over repetitions.

    Attributes:
        mean: the mean.
        margin: half the width of the interval; None for one repetition or an infinite mean.
    """

    mean: float
    margin: float | None = None


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> MeanInterval:
    """Return the mean of one or more repetitions and its Student's t interval (1908).

    Args:
        values: the repetitions.
        confidence: probability that such an interval contains the true mean.
    """
    mean = fmean(values)
    if len(values) < 2 or not math.isfinite(mean):
        return MeanInterval(mean)
    t = quantile(confidence, len(values) - 1)
    return MeanInterval(mean, t * stdev(values, mean) / math.sqrt(len(values)))


def quantile(confidence: float, freedom: int) -> float:
    """Return t such that a variable of Student's distribution lies in [-t, t] with probability `confidence`.

    Args:
        confidence: above 0 and below 1.
        freedom: degrees of freedom, 1 or more.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """Return P(|t| < √freedom tan(angle)): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = freedom % 2
    term, total = math.cos(angle) ** odd, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
