"""A reward model learns to rank, and a run of it scores text as its training did."""

import math

import pytest
import torch

from llm.config.build import build
from llm.config.errors import ConfigError
from llm.rewards.run import RunReward
from llm.weights.run import RunWeights


@pytest.fixture
def rewarded(train, pairs):
    words = ("task=reward", "data=preference", f"data.path={pairs}", "optimizer.lr=0.01")
    return lambda name, *more: train(name, *words, *more)


def test_it_learns_to_rank_and_its_run_scores_as_it_did(rewarded, logged):
    run = rewarded("run", "trainer.max_steps=40", "trainer.val_every=20")
    rows = logged(run)
    assert float(rows[0]["train/loss"]) == pytest.approx(math.log(2), abs=0.05)
    last = next(row for row in reversed(rows) if row.get("val/loss"))
    assert float(last["val/accuracy"]) == 1
    assert float(last["val/margin"]) > 1

    weights = RunWeights(str(run.path), checkpoint="last")
    data = build(weights.config.data, tokenizer=weights.tokenizer())
    data.setup()
    pairs = data.raw["validation"]
    prompts = [data.template.render(pair.prompt) for pair in pairs]
    reward = RunReward(str(run.path), checkpoint="last", batch_size=3)
    chosen = reward(prompts, [pair.chosen for pair in pairs], prompts)
    rejected = reward(prompts, [pair.rejected for pair in pairs], prompts)
    for name, scores in (("chosen", chosen), ("rejected", rejected)):
        expected = float(last[f"val/{name}_reward"])
        assert sum(scores) / len(scores) == pytest.approx(expected, abs=1e-4)
    assert reward([], [], []) == []


def test_it_resumes_to_the_bit(train, interrupted, pairs, logged):
    words = ("task=reward", "data=preference", f"data.path={pairs}", "task.model.dropout=0.1")
    whole = train("whole", *words, "trainer.log_every=2")
    parts = interrupted("parts", *words, "trainer.log_every=2", step=5)
    assert logged(whole) == logged(parts)
    left, right = (torch.load(run.last, weights_only=True)["state_dict"] for run in (whole, parts))
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_a_run_of_another_kind_is_no_reward(train, pairs, tmp_path):
    run = train("run", "task=preference", "data=preference", f"data.path={pairs}")
    with pytest.raises(ConfigError, match="holds no reward model; train one with"):
        RunReward(str(run.path))(["a"], ["b"], ["c"])
    with pytest.raises(ValueError, match="no run directory"):
        RunReward(str(tmp_path))
