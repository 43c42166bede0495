"""The metric columns of a table: their order, titles and number formats."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llm.comparison.interval import MeanInterval
from llm.units import UNKNOWN, duration, format_number


class MetricColumn(NamedTuple):
    """A metric of a run as a column of the table.

    Attributes:
        name: name in files.
        title: title for people.
        write: formats a value for people.
        is_measured: whether it differs between repetitions by chance, and has an interval.
    """

    name: str
    title: str
    write: Callable[[float], str]
    is_measured: bool = False

    def text(self, found: MeanInterval | None) -> str:
        """Return the cell."""
        if found is None:
            return UNKNOWN
        if found.margin is None or not self.is_measured or not math.isfinite(found.margin):
            return self.write(found.mean)
        places = _places(found.margin)
        return f"{found.mean:.{places}f} ± {found.margin:.{places}f}"


def _places(margin: float) -> int:
    """Return the decimal places that show two digits of a margin."""
    return 4 if not margin else min(6, max(0, 1 - math.floor(math.log10(margin))))


def format_quality(value: float) -> str:
    """Return a quality metric with four decimal places."""
    return f"{value:.4f}"


LEARNED = (
    MetricColumn("parameters", "parameters", format_number),
    MetricColumn("trained_parameters", "trained", format_number),
    MetricColumn("tokens", "tokens", format_number),
    MetricColumn("final_loss", "final val loss", format_quality, is_measured=True),
    MetricColumn("best_loss", "best val loss", format_quality, is_measured=True),
    MetricColumn("bits_per_byte", "bits/byte", format_quality, is_measured=True),
)
# Columns that depend on the machine; they come last, so that the other columns of two tables line up.
CLOCKED = (
    MetricColumn("tokens_per_second", "tokens/s", lambda value: f"{value:,.0f}"),
    MetricColumn("mfu", "MFU", lambda value: f"{value:.1%}"),
    MetricColumn("peak_gib", "peak memory", lambda value: f"{value:.2f} GiB"),
    MetricColumn("seconds", "time", duration),
)
# Metrics that repeat another column.
REPEATED = ("val/loss", "val/perplexity", "val/bits_per_byte", "test/perplexity")


def metric_columns(names: Sequence[str]) -> list[MetricColumn]:
    """Return the metric columns of a table.

    Args:
        names: the task's own metrics to show, such as `test/accuracy`.
    """
    own = [MetricColumn(name, name, format_quality, is_measured=True) for name in names]
    return [*LEARNED, *own, *CLOCKED]
