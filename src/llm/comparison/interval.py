"""How far a mean over a few seeds could be off: Student's t."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple


class MeanInterval(NamedTuple):
    """A mean over repetitions.

    Attributes:
        mean: the mean.
        margin: half the width of its interval; None where a single repetition, or an infinite one, tells
            nothing of it.
    """

    mean: float
    margin: float | None = None


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> MeanInterval:
    """The mean of some values and the interval of Student's t around it (1908).

    Args:
        values: one or more repetitions of a measurement.
        confidence: how often such an interval holds the true mean.
    """
    mean = fmean(values)
    if len(values) < 2 or not math.isfinite(mean):
        return MeanInterval(mean)
    t = quantile(confidence, len(values) - 1)
    return MeanInterval(mean, t * stdev(values, mean) / math.sqrt(len(values)))


def quantile(confidence: float, freedom: int) -> float:
    """The t that a variable of Student's distribution stays within, on both sides, so often.

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
    """How often |t| < √freedom tan(angle): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = freedom % 2
    term, total = math.cos(angle) ** odd, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
