"""Formatting of numbers with units."""

import math
from collections.abc import Callable, Sequence

Units = Sequence[tuple[float, str]]

UNKNOWN = "–"
LETTERS: Units = ((1, ""), (1e3, "k"), (1e6, "M"), (1e9, "B"), (1e12, "T"))
BINARY: Units = ((1, "B"), (2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB"), (2**40, "TiB"))
TIMES: Units = ((1, "s"), (60, "min"), (3600, "h"), (86400, "days"), (86400 * 365, "years"))


def format_number(value: float | None) -> str:
    """Format a number with three digits and a letter: 124 M parameters, 2.50 B tokens."""
    return _scaled(value, LETTERS)


def format_bytes(value: float | None) -> str:
    """Format bytes in a binary unit: 1.25 GiB."""
    return _scaled(value, BINARY)


def common_unit(largest: float) -> tuple[str, Callable[[float], str]]:
    """Return the binary unit of the largest of several sizes, and a function that formats a size in it."""
    scale, unit = _unit(largest, BINARY)
    return unit, lambda value: f"{value / scale:,.2f}"


def duration(seconds: float | None) -> str:
    """Format a time in one unit: 4.30 h."""
    return _scaled(seconds, TIMES)


def flops(value: float | None) -> str:
    """Format a number of operations as papers do: 2.14e18."""
    return UNKNOWN if value is None else f"{value:.2e}".replace("e+", "e")


def percent(fraction: float | None) -> str:
    """Format a relative difference: +0.02 %, +1,600 %; no difference is 0 %."""
    if fraction is None:
        return UNKNOWN
    value = 100 * fraction
    if abs(value) >= 99.5:  # with two digits it would be 1e+02
        return f"{value:+,.0f} %"
    return "0 %" if fraction == 0 else f"{value:+.2g} %"


def _scaled(value: float | None, units: Units) -> str:
    if value is None:
        return UNKNOWN
    scale, unit = _unit(value, units)
    rounded = _rounded(value / scale)
    digits = 2 if rounded < 10 else 1 if rounded < 100 else 0
    text = f"{rounded:.{digits}f}" if scale > 1 or value % 1 else f"{rounded:.0f}"
    return f"{text} {unit}".rstrip()


def _unit(value: float, units: Units) -> tuple[float, str]:
    """Return the largest unit that is at most the rounded number: 999,600 is 1.00 M."""
    found = units[0]
    for scale, unit in units[1:]:
        if math.isfinite(value) and _rounded(value / found[0]) * found[0] >= scale:
            found = scale, unit
    return found


def _rounded(value: float) -> float:
    """Round to three digits, or to an integer if it has more."""
    return float(f"{value:.3g}") if value < 1000 else float(f"{value:.0f}")
