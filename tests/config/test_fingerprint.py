"""A fingerprint changes with the settings that determine the weights, and with nothing else."""

import copy

import pytest
from omegaconf import OmegaConf

from llm.config.fingerprint import fingerprint, fingerprint_changes

CONFIG = {
    "model": {"dim": "${size.dim}", "parts": [1, {"a": 2}]},
    "size": {"dim": 64},
    "hardware": {"workers": 0},
    "logger": {},
    "callbacks": {"samples": {"every": 1}},
    "trainer": {"max_steps": 10, "accumulate": 1},
    "name": "first",
    "output_dir": "outputs",
    "seed": 0,
}


def changed(**values):
    config = OmegaConf.create(copy.deepcopy(CONFIG))
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    return config


def test_fingerprint_is_short_and_stable():
    assert fingerprint(changed()) == fingerprint(
        CONFIG | {"model": {"parts": [1, {"a": 2}], "dim": 64}}
    )
    assert len(fingerprint(changed())) == 16
    assert fingerprint(dict(reversed(CONFIG.items()))) == fingerprint(CONFIG)


@pytest.mark.parametrize(
    "values",
    [
        {"hardware__workers": 4},
        {"logger__wandb": {"project": "x"}},
        {"callbacks__samples": None},
        {"trainer__max_steps": 99},
        {"trainer__max_tokens": 99},
        {"name": "second"},
        {"output_dir": "elsewhere"},
    ],
)
def test_hardware_budget_and_loggers_do_not_change_the_fingerprint(values):
    assert fingerprint(changed(**values)) == fingerprint(changed())
    assert fingerprint_changes(changed(), changed(**values)) == {}


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"seed": 1}, ["seed: 0 → 1"]),
        ({"size__dim": 32}, ["model.dim: 64 → 32", "size.dim: 64 → 32"]),
        ({"trainer__accumulate": 2}, ["trainer.accumulate: 1 → 2"]),
        ({"model__parts": []}, ['model.parts: [1, {"a": 2}] → []']),
        ({"model__bias": None}, ["model.bias: absent → null"]),
        ({"names": "x"}, ['names: absent → "x"']),
    ],
)
def test_changes_of_the_training_change_the_fingerprint_and_are_named(values, lines):
    assert fingerprint(changed(**values)) != fingerprint(changed())
    changes = fingerprint_changes(changed(), changed(**values))
    assert [f"{key}: {change}" for key, change in changes.items()] == lines


def test_missing_value_is_not_a_difference():
    assert fingerprint_changes(changed(seed=3), changed(seed="???")) == {}


def test_ignored_keys_are_chosen_by_the_caller():
    assert fingerprint(changed(seed=1), ignore=("seed",)) == fingerprint(
        changed(), ignore=("seed",)
    )
    assert fingerprint(changed(name="x"), ignore=()) != fingerprint(changed(), ignore=())
