import itertools
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from llm.optim import schedules

CONF = Path(__file__).parents[2] / "conf" / "schedule"
SCHEDULES = [schedules.constant, schedules.linear, schedules.cosine, schedules.wsd]
DECAYING = SCHEDULES[1:]


def curve(schedule, max_steps, **settings):
    return [schedule(step, max_steps, **settings) for step in range(max_steps)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("max_steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("warmup_steps", [0, 1, 2, 7, 99, 100, 1000])
def test_factor_stays_between_zero_and_one_in_runs_of_any_length(schedule, max_steps, warmup_steps):
    factors = curve(schedule, max_steps, warmup_steps=warmup_steps)
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[0] > 0
    # The warm-up is a straight line in every schedule.
    for step in range(min(warmup_steps, max_steps)):
        assert factors[step] == pytest.approx((step + 1) / warmup_steps)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_first_step_is_the_peak_without_warm_up(schedule, warmup_steps):
    assert schedule(0, 100, warmup_steps=warmup_steps) == 1


@pytest.mark.parametrize("schedule", DECAYING)
@pytest.mark.parametrize("warmup_steps", [0, 10])
@pytest.mark.parametrize("final_ratio", [0.0, 0.1, 1.0])
def test_last_step_has_the_final_ratio_and_later_ones_keep_it(schedule, warmup_steps, final_ratio):
    factor = partial(schedule, max_steps=50, warmup_steps=warmup_steps, final_ratio=final_ratio)
    assert factor(49) == pytest.approx(final_ratio)
    assert factor(50) == pytest.approx(final_ratio)
    assert factor(5000) == pytest.approx(final_ratio)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup_steps", [0, 100])
def test_factor_has_no_jumps(schedule, warmup_steps):
    factors = curve(schedule, 1000, warmup_steps=warmup_steps)
    largest = max(abs(b - a) for a, b in itertools.pairwise(factors))
    # The steepest parts: 100 steps of warm-up, 200 steps of decay in WSD.
    assert largest <= (0.01 if warmup_steps else 0.005) + 1e-9


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_factor_rises_once_and_falls_once(schedule):
    factors = curve(schedule, 200, warmup_steps=20)
    peak = factors.index(1.0)
    assert peak == 19
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_cosine_equals_its_closed_form():
    for step in range(41):
        expected = 0.2 + 0.8 * (1 + math.cos(math.pi * step / 40)) / 2
        assert schedules.cosine(step, 41, final_ratio=0.2) == pytest.approx(expected, abs=1e-12)


def test_wsd_is_stable_until_its_last_fifth():
    factors = curve(schedules.wsd, 100, warmup_steps=10, final_ratio=0.5, decay_fraction=0.2)
    assert factors[9:80] == [1.0] * 71
    assert factors[80:] == pytest.approx([1 - 0.5 * k / 20 for k in range(1, 21)])


def test_wsd_finishes_a_warm_up_that_reaches_into_the_decay():
    factors = curve(schedules.wsd, 10, warmup_steps=6, final_ratio=0.0, decay_fraction=0.8)
    assert factors == pytest.approx([*(k / 6 for k in range(1, 7)), 0.75, 0.5, 0.25, 0.0])


def huggingface(make):
    """Hugging Face's factors, which start at 0: with warm-up their step k + 1 is our step k."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return make(optimizer).lr_lambdas[0]


@pytest.mark.parametrize("warmup_steps", [1, 5, 20])
def test_schedules_equal_those_of_huggingface(warmup_steps):
    steps = 60
    pairs = [
        (
            partial(schedules.cosine, final_ratio=0.0),
            partial(get_cosine_schedule_with_warmup, num_training_steps=steps),
        ),
        (schedules.linear, partial(get_linear_schedule_with_warmup, num_training_steps=steps)),
        (schedules.constant, get_constant_schedule_with_warmup),
        (
            partial(schedules.wsd, decay_fraction=0.25),
            partial(
                get_wsd_schedule,
                num_decay_steps=15,
                num_training_steps=steps,
                decay_type="linear",
            ),
        ),
    ]
    for ours, theirs in pairs:
        reference = huggingface(partial(theirs, num_warmup_steps=warmup_steps))
        for step in range(steps):
            expected = reference(step + 1)
            assert ours(step, steps, warmup_steps=warmup_steps) == pytest.approx(expected), (
                theirs.func if isinstance(theirs, partial) else theirs,
                step,
            )


@pytest.mark.parametrize(
    ("schedule", "settings", "named"),
    [
        (schedules.constant, {"max_steps": 0}, "max_steps=0"),
        (schedules.cosine, {"max_steps": -1}, "max_steps=-1"),
        (schedules.cosine, {"warmup_steps": -1}, "warmup_steps=-1"),
        (schedules.linear, {"final_ratio": 1.5}, "final_ratio=1.5"),
        (schedules.wsd, {"decay_fraction": -0.1}, "decay_fraction=-0.1"),
    ],
)
def test_a_setting_out_of_range_is_named(schedule, settings, named):
    with pytest.raises(ValueError, match=named):
        schedule(0, **{"max_steps": 10, **settings})


@pytest.mark.parametrize("option", sorted(CONF.glob("*.yaml")), ids=lambda option: option.stem)
def test_option_fits_its_function_and_works_with_lambda_lr(option):
    settings = yaml.safe_load(option.read_text())
    assert settings.pop("_target_") == f"llm.optim.schedules.{option.stem}"
    assert settings.pop("_partial_") is True
    schedule = partial(getattr(schedules, option.stem), **settings)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, 200))
    for step in range(200):
        assert scheduler.get_last_lr() == [0.5 * schedule(step, 200)]
        optimizer.step()
        scheduler.step()
