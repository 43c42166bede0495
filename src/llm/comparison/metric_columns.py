"""The figures of a table: their order, what they are called, and how they are written for a person."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llm.comparison.interval import MeanInterval
from llm.units import UNKNOWN, duration, format_number


class MetricColumn(NamedTuple):
    """A number that a run is known by.

    Attributes:
        name: in files, with its unit where that is not plain.
        title: for a person.
        write: a value as a person reads it.
        is_measured: whether repetitions differ in it by chance, so that it has an interval.
    """

    name: str
    title: str
    write: Callable[[float], str]
    is_measured: bool = False

    def text(self, found: MeanInterval | None) -> str:
        """What a cell says."""
        if found is None:
            return UNKNOWN
        if found.margin is None or not self.is_measured or not math.isfinite(found.margin):
            return self.write(found.mean)
        places = _places(found.margin)
        return f"{found.mean:.{places}f} ± {found.margin:.{places}f}"


def _places(margin: float) -> int:
    """Decimal places that show two digits of a margin."""
    return 4 if not margin else min(6, max(0, 1 - math.floor(math.log10(margin))))


def format_quality(value: float) -> str:
    """A figure of quality: four decimal places."""
    return f"{value:.4f}"


LEARNED = (
    MetricColumn("parameters", "parameters", format_number),
    MetricColumn("trained_parameters", "trained", format_number),
    MetricColumn("tokens", "tokens", format_number),
    MetricColumn("final_loss", "final val loss", format_quality, is_measured=True),
    MetricColumn("best_loss", "best val loss", format_quality, is_measured=True),
    MetricColumn("bits_per_byte", "bits/byte", format_quality, is_measured=True),
)
# What depends on the clock and the machine stands last, so that the rest of two tables can be held together.
CLOCKED = (
    MetricColumn("tokens_per_second", "tokens/s", lambda value: f"{value:,.0f}"),
    MetricColumn("mfu", "MFU", lambda value: f"{value:.1%}"),
    MetricColumn("peak_gib", "peak memory", lambda value: f"{value:.2f} GiB"),
    MetricColumn("seconds", "time", duration),
)
# These say again what others say.
REPEATED = ("val/loss", "val/perplexity", "val/bits_per_byte", "test/perplexity")


def metric_columns(names: Sequence[str]) -> list[MetricColumn]:
    """The figures of a table.

    Args:
        names: those of a task's own, such as `test/accuracy`, that are to be shown.
    """
    own = [MetricColumn(name, name, format_quality, is_measured=True) for name in names]
    return [*LEARNED, *own, *CLOCKED]
