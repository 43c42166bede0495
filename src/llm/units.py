"""Numbers as people read them."""

import math
from collections.abc import Callable, Sequence

Units = Sequence[tuple[float, str]]

UNKNOWN = "–"
LETTERS: Units = ((1, ""), (1e3, "k"), (1e6, "M"), (1e9, "B"), (1e12, "T"))
BINARY: Units = ((1, "B"), (2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB"), (2**40, "TiB"))
TIMES: Units = ((1, "s"), (60, "min"), (3600, "h"), (86400, "days"), (86400 * 365, "years"))


def format_number(value: float | None) -> str:
    """Three digits and a letter: 124 M parameters, 2.50 B tokens."""
    return _scaled(value, LETTERS)


def format_bytes(value: float | None) -> str:
    """Bytes in a binary unit: 1.25 GiB."""
    return _scaled(value, BINARY)


def common(largest: float) -> tuple[str, Callable[[float], str]]:
    """One binary unit for many sizes, that of the largest: its name, and how a size is written in it."""
    scale, unit = _unit(largest, BINARY)
    return unit, lambda value: f"{value / scale:,.2f}"


def duration(seconds: float | None) -> str:
    """A time in one unit: 4.30 h."""
    return _scaled(seconds, TIMES)


def flops(value: float | None) -> str:
    """Operations as a power of ten, as papers count them: 2.14e+18 is 2.14e18."""
    return UNKNOWN if value is None else f"{value:.2e}".replace("e+", "e")


def percent(fraction: float | None) -> str:
    """How much more or less than something else: +0.02 %; equal is 0 %."""
    if fraction is None:
        return UNKNOWN
    return "0 %" if fraction == 0 else f"{100 * fraction:+.2g} %"


def _scaled(value: float | None, units: Units) -> str:
    if value is None:
        return UNKNOWN
    scale, unit = _unit(value, units)
    rounded = _rounded(value / scale)
    digits = 2 if rounded < 10 else 1 if rounded < 100 else 0
    text = f"{rounded:.{digits}f}" if scale > 1 or value % 1 else f"{rounded:.0f}"
    return f"{text} {unit}".rstrip()


def _unit(value: float, units: Units) -> tuple[float, str]:
    """The largest unit of which there is one, once the number is rounded: 999,600 is 1.00 M."""
    found = units[0]
    for scale, unit in units[1:]:
        if math.isfinite(value) and _rounded(value / found[0]) * found[0] >= scale:
            found = scale, unit
    return found


def _rounded(value: float) -> float:
    """To three digits, or to a whole number where it has more."""
    return float(f"{value:.3g}") if value < 1000 else float(f"{value:.0f}")
