"""Short forms of numbers, sizes and times."""

import pytest

from llm.units import common_unit, duration, flops, format_bytes, format_number, percent


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_number(124_439_808), "124 M"),
        (format_number(2.5e9), "2.50 B"),
        (format_number(97), "97"),
        (format_number(999_600), "1.00 M"),
        (format_number(999.6), "1.00 k"),
        (format_number(9_996), "10.0 k"),
        (format_number(float("nan")), "nan"),
        (format_number(None), "–"),
        (format_bytes(80 * 2**30), "80.0 GiB"),
        (format_bytes(0), "0 B"),
        (format_bytes(1023.9 * 2**20), "1.00 GiB"),
        (format_bytes(1023 * 2**20), "1023 MiB"),
        (duration(59.98), "1.00 min"),
        (duration(45.04), "45.0 s"),
        (duration(3 * 86400), "3.00 days"),
        (flops(2.138e18), "2.14e18"),
        (percent(0.0), "0 %"),
        (percent(-0.4380), "-44 %"),
        (percent(0.9949), "+99 %"),
        (percent(0.9951), "+100 %"),
        (percent(6.3), "+630 %"),
        (percent(16.004), "+1,600 %"),
        (percent(None), "–"),
    ],
)
def test_a_number_is_short_and_has_its_unit(text, expected):
    assert text == expected


def test_common_unit_is_that_of_the_largest():
    unit, shown = common_unit(3 * 2**30)
    assert common_unit(1023.999 * 2**20)[0] == "GiB"
    assert (unit, shown(2**29), shown(3 * 2**30)) == ("GiB", "0.50", "3.00")
