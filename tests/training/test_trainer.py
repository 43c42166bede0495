"""The budget: one of three keys, and the values that follow from it."""

import math

import pytest
from divided import train_all, write_text
from ranks import on_ranks

from llm.training.trainer import TrainerSettings


def test_steps_from_steps_epochs_and_tokens():
    assert TrainerSettings(max_steps=7).steps(batches_per_epoch=9, tokens_per_batch=512) == 7
    assert TrainerSettings(max_epochs=10).steps(batches_per_epoch=9, tokens_per_batch=512) == 90
    assert TrainerSettings(max_epochs=0.5).steps(batches_per_epoch=9, tokens_per_batch=512) == 5
    assert TrainerSettings(max_tokens=1000).steps(batches_per_epoch=9, tokens_per_batch=512) == 2


def test_accumulation_makes_fewer_and_larger_steps():
    settings = TrainerSettings(max_epochs=10, accumulate=2)
    assert settings.steps(batches_per_epoch=9, tokens_per_batch=512) == 45
    assert TrainerSettings(max_tokens=2048, accumulate=2).steps(9, 512) == 2


@pytest.mark.parametrize("budget", [{}, {"max_steps": 1, "max_epochs": 1}])
def test_exactly_one_budget_is_required(budget):
    with pytest.raises(ValueError, match="set exactly one of them and the others to null"):
        TrainerSettings(**budget)


@pytest.mark.parametrize(
    "setting", [{"accumulate": 0}, {"val_every": 0}, {"gradient_clip": -1.0}, {"log_every": 0}]
)
def test_numbers_out_of_range_are_named(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name}=.*: give a number above 0"):
        TrainerSettings(max_steps=1, **setting)


@pytest.mark.parametrize("budget", ["max_epochs", "max_tokens"])
def test_infinite_budget_is_refused(budget):
    for endless in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"{budget}={endless}: give a number above 0"):
            TrainerSettings(**{budget: endless})


def test_validation_comes_ten_times_a_run_and_at_its_end():
    assert TrainerSettings(max_steps=1000).validation_interval(1000) == 100
    assert TrainerSettings(max_steps=5).validation_interval(5) == 1
    assert TrainerSettings(max_steps=5, val_every=100).validation_interval(5) == 5


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Overrides for two steps."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    return write_text(tmp_path), "trainer.max_steps=2"


def assert_near(found, expected, tolerance):
    """Require the losses of each step to agree within a relative tolerance."""
    for name, curve in found.items():
        for row, other in zip(curve, expected, strict=True):
            assert row == pytest.approx(other, rel=tolerance, nan_ok=True), name


@pytest.mark.long
def test_two_compiled_ranks_equal_one_uncompiled(few, tmp_path):
    few = (*few, "size.num_layers=1")
    alone = train_all(tmp_path / "1", {"alone": few})["alone"]
    runs = {name: (*few, f"hardware={name}", "hardware.compile=true") for name in ("ddp", "fsdp")}
    found = on_ranks(2, train_all, tmp_path / "2", runs, timeout=500)[0]
    assert_near(found, alone, 1e-4)


@pytest.mark.slow
def test_every_strategy_equals_one_device_in_bfloat16(few, tmp_path):
    few = (*few, "hardware.precision=bf16")
    alone = train_all(tmp_path / "1", {"alone": few})["alone"]
    names = ("ddp", "fsdp", "tensor_parallel", "pipeline")
    runs = {name: (*few, f"hardware={name}") for name in names}
    found = on_ranks(2, train_all, tmp_path / "2", runs)[0]
    assert_near(found, alone, 2e-2)
    assert found["ddp"] != found["tensor_parallel"]  # sums are rounded in another order


def test_validation_bytes_are_bounded_by_the_text_trained_between_validations():
    settings = TrainerSettings(max_steps=1000)
    assert settings.validation_bytes(1000, 1024) == 1.5 * 100 * 1024
    assert TrainerSettings(max_steps=300, val_every=30).validation_bytes(300, 64) == 1 << 15
    assert TrainerSettings(max_steps=9, accumulate=4, val_every=3).validation_bytes(9, 1e5) == 1.8e6
    assert TrainerSettings(max_steps=9, val_bytes=7).validation_bytes(9, 1) == 7
    assert TrainerSettings(max_steps=9, val_batches=2).validation_bytes(9, 1) == math.inf


def test_default_experiment_reads_the_whole_validation_part():
    """The README's numbers are of the whole part of 90 kB."""
    assert TrainerSettings(max_steps=1000).validation_bytes(1000, 8 * 128) > 1.5 * 90_000
