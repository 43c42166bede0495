import dataclasses

import pytest

from llm.models.size import Size, active_parameters

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


def test_active_parameters_leave_out_experts_that_a_token_does_not_choose(build):
    words = ("model=mixtral", "size.num_layers=3", "model.feed_forward.num_experts=8")
    model, small = build(*words), build(*words, "model.feed_forward.num_experts=2")
    routers = 3 * 64 * (8 - 2)
    assert active_parameters(model) == active_parameters(small) + routers
    assert active_parameters(small) == sum(p.numel() for p in small.parameters())
    for context in (1, 64):
        difference = model.flops_per_token(context) - small.flops_per_token(context)
        assert difference == 6 * routers
