"""A reward model scores a text in a run as during its training."""

import json
from dataclasses import replace

import pytest

from llm.config.build import build
from llm.config.errors import ConfigError
from llm.data.examples.template import stored_template
from llm.rewards.base import require_template
from llm.rewards.run import RunReward
from llm.weights.run import RunWeights


def test_scores_equal_those_in_training(train, pairs, logged):
    words = ("task=reward", "data=preference", f"data.path={pairs}", "optimizer.lr=0.01")
    run = train("run", *words)
    last = next(row for row in reversed(logged(run)) if row.get("val/loss"))
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


def test_a_run_of_another_task_is_refused_as_a_reward(train, pairs, tmp_path):
    run = train("run", "task=dpo", "data=preference", f"data.path={pairs}")
    with pytest.raises(ConfigError, match="is not a reward model; train one with"):
        RunReward(str(run.path))(["a"], ["b"], ["c"])
    with pytest.raises(ConfigError, match=r"^reward\.path: .* is not a run directory"):
        RunReward(str(tmp_path))


def test_prompts_in_another_template_are_refused(train, pairs):
    run = train("run", "task=reward", "data=preference", f"data.path={pairs}")
    reward = RunReward(str(run.path))
    own = stored_template(RunWeights(str(run.path)).config)
    require_template(reward, own)
    for other in (None, replace(own, separator="\n\n")):
        with pytest.raises(ValueError, match="in another template than these"):
            require_template(reward, other)
    words = ("task=grpo", "data=instruction", "data.template.separator=XX")
    questions = pairs.with_name("questions.jsonl")
    rows = [json.loads(row) for row in pairs.read_text().splitlines()]
    rows = [{"instruction": row["instruction"], "output": row["chosen"]} for row in rows]
    questions.write_text("\n".join(map(json.dumps, rows)))
    words = (*words, f"data.path={questions}", "reward=run", f"reward.path={run.path}")
    with pytest.raises(ConfigError, match=r"task: the reward model .* in another template"):
        train("policy", *words)
