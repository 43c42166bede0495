"""95 % confidence intervals of metrics of a sample."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z = 1.959964  # the normal distribution leaves 2.5 % beyond it on either side
RESAMPLES = 10_000


class Interval(NamedTuple):
    """A metric and its 95 % interval; NaN if the sample is too small.

    Attributes:
        mean: the metric.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """Return the mean of values with the percentile interval of the means of resamples (Efron 1979).

    Args:
        values: one per item; fewer than two have no interval.
        seed: seed of the resampling.
    """
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < 2:
        return Interval(float(sample[0]) if len(sample) else math.nan, math.nan, math.nan)
    draw = np.random.default_rng(seed)
    means = [draw.choice(sample, len(sample)).mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(sample.mean()), float(low), float(high))


def wilson(successes: float, trials: int) -> Interval:
    """Return a rate with Wilson's score interval (1927), which stays within 0 and 1 and is accurate near both.

    Args:
        successes: number of successes; a tie may count as half, which makes the interval slightly too wide.
        trials: number of trials.
    """
    if not trials:
        return Interval(math.nan, math.nan, math.nan)
    rate = successes / trials
    centre = rate + Z**2 / (2 * trials)
    spread = Z * math.sqrt(rate * (1 - rate) / trials + (Z / (2 * trials)) ** 2)
    scale = 1 + Z**2 / trials
    return Interval(rate, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))
