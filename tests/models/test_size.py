import dataclasses

import pytest

from llm.models.size import Size

GOOD = {"num_layers": 2, "num_heads": 4, "dim": 64, "context_length": 32, "num_kv_heads": None}


def test_size_keeps_its_values():
    assert dataclasses.asdict(Size(**GOOD)) == GOOD


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_heads": 5}, "num_heads=5 does not divide dim=64: .*1, 2, 4, 8"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 does not divide num_heads=4"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"context_length": -1}, "context_length=-1"),
        ({"dim": 0}, "dim=0"),
        (
            {"num_layers": 10**9},
            "num_layers=1000000000 is out of range; give 1 or more and at most 1024",
        ),
        ({"dim": 10**9}, "dim=1000000000 is out of range; give 1 or more and at most 1048576"),
        ({"context_length": 10**12}, "context_length=1000000000000 is out of range"),
    ],
)
def test_invalid_sizes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Size(**{**GOOD, **wrong})
