"""The budget: one of three words, and what follows from it."""

import pytest

from llm.trainer import Settings


def test_steps_from_steps_epochs_and_tokens():
    assert Settings(max_steps=7).steps(batches_per_epoch=9, tokens_per_batch=512) == 7
    assert Settings(max_epochs=10).steps(batches_per_epoch=9, tokens_per_batch=512) == 90
    assert Settings(max_epochs=0.5).steps(batches_per_epoch=9, tokens_per_batch=512) == 5
    assert Settings(max_tokens=1000).steps(batches_per_epoch=9, tokens_per_batch=512) == 2


def test_accumulation_makes_fewer_and_larger_steps():
    settings = Settings(max_epochs=10, accumulate=2)
    assert settings.steps(batches_per_epoch=9, tokens_per_batch=512) == 45
    assert Settings(max_tokens=2048, accumulate=2).steps(9, 512) == 2


@pytest.mark.parametrize("budget", [{}, {"max_steps": 1, "max_epochs": 1}])
def test_exactly_one_budget(budget):
    with pytest.raises(ValueError, match="set exactly one of them and the others to null"):
        Settings(**budget)


@pytest.mark.parametrize(
    "setting", [{"accumulate": 0}, {"val_every": 0}, {"gradient_clip": -1.0}, {"log_every": 0}]
)
def test_numbers_out_of_range_are_named(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name}=.*: give a number above 0"):
        Settings(max_steps=1, **setting)


def test_validation_comes_ten_times_a_run_and_at_its_end():
    assert Settings(max_steps=1000).validation_interval(1000) == 100
    assert Settings(max_steps=5).validation_interval(5) == 1
    assert Settings(max_steps=5, val_every=100).validation_interval(5) == 5
