"""Numbers as people read them."""

from collections.abc import Callable

UNKNOWN = "–"
LETTERS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
BINARY = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
TIMES = ((86400 * 365, "years"), (86400, "days"), (3600, "h"), (60, "min"))


def number(value: float | None) -> str:
    """Three digits and a letter: 124 M parameters, 2.50 B tokens."""
    return _scaled(value, LETTERS, "")


def size(value: float | None) -> str:
    """Bytes in a binary unit: 1.25 GiB."""
    return _scaled(value, BINARY, "B")


def common(largest: float) -> tuple[str, Callable[[float], str]]:
    """One binary unit for many sizes, that of the largest: its name, and how a size is written in it."""
    scale, unit = next(((scale, unit) for scale, unit in BINARY if largest >= scale), (1, "B"))
    return unit, lambda value: f"{value / scale:,.2f}"


def duration(seconds: float | None) -> str:
    """A time in one unit: 4.30 h."""
    return _scaled(seconds, TIMES, "s")


def flops(value: float | None) -> str:
    """Operations as a power of ten, as papers count them: 2.14e+18 is 2.14e18."""
    return UNKNOWN if value is None else f"{value:.2e}".replace("e+", "e")


def percent(fraction: float | None) -> str:
    """How much more or less than something else: +0.02 %; equal is 0 %."""
    if fraction is None:
        return UNKNOWN
    return "0 %" if fraction == 0 else f"{100 * fraction:+.2g} %"


def _scaled(value: float | None, units: tuple[tuple[float, str], ...], last: str) -> str:
    if value is None:
        return UNKNOWN
    scale, unit = next(((scale, unit) for scale, unit in units if value >= scale), (1, last))
    scaled = value / scale
    digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
    text = f"{scaled:.{digits}f}" if scale > 1 or scaled % 1 else f"{scaled:.0f}"
    return f"{text} {unit}".rstrip()
