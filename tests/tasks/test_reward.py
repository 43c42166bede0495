"""A reward model learns to rank, and resumes."""

import math

import pytest
import torch


@pytest.fixture
def rewarded(train, pairs):
    words = ("task=reward", "data=preference", f"data.path={pairs}", "optimizer.lr=0.01")
    return lambda name, *more: train(name, *words, *more)


def test_reward_model_learns_to_rank(rewarded, logged):
    run = rewarded("run", "trainer.max_steps=40", "trainer.val_every=20")
    rows = logged(run)
    assert float(rows[0]["train/loss"]) == pytest.approx(math.log(2), abs=0.05)
    last = next(row for row in reversed(rows) if row.get("val/loss"))
    assert float(last["val/accuracy"]) == 1
    assert float(last["val/margin"]) > 1


def test_reward_model_resumes_to_the_bit(train, interrupted, pairs, logged):
    words = ("task=reward", "data=preference", f"data.path={pairs}", "task.model.dropout=0.1")
    whole = train("whole", *words, "trainer.log_every=2")
    parts = interrupted("parts", *words, "trainer.log_every=2", step=4)
    assert logged(whole) == logged(parts)
    left, right = (torch.load(run.last, weights_only=True)["state_dict"] for run in (whole, parts))
    assert all(torch.equal(left[key], right[key]) for key in left)
