"""GRPO: it learns what is rewarded, and its responses are a function of seed and step."""

import json
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from llm.config.build import build
from llm.config.errors import ConfigError
from llm.hardware import Hardware
from llm.optim.groups import decay_matrices
from llm.optim.schedules import constant
from llm.parallel.fsdp import FSDP
from llm.tasks.grpo import GRPO, join_response
from llm.tasks.reference import FrozenCopy

WORDS = (
    *("task=grpo", "data=instruction", "data/collation=padding", "tokenizer=char"),
    *("reward=contains", "reward.text=e", "task.max_tokens=6", "optimizer.lr=0.01"),
)


@pytest.fixture
def questions(tmp_path):
    """Conversations with all letters, for an alphabet of about thirty characters."""
    rows = [
        {"instruction": f"{word}?", "output": "the quick brown fox jumps over a lazy dog"}
        for word in "cat dog hen cow pig fox owl ant bee elk ape rat".split()
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


@pytest.fixture
def grpo(train, questions):
    return lambda name, *words: train(name, *WORDS, f"data.path={questions}", *words)


@pytest.mark.filterwarnings("ignore:step .* gradient norm")
def test_rewarded_letter_becomes_more_frequent(grpo, logged):
    words = ("trainer.max_steps=30", "trainer.val_every=10", "task.beta=0.01")
    rows = logged(grpo("run", *words))
    rewards = [float(row["train/reward"]) for row in rows if row.get("train/reward")]
    before, after = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    assert before < 0.4
    assert after > before + 0.4
    assert float(rows[0]["train/kl"]) == 0, "it starts at the reference"
    assert float(rows[-1]["val/kl"]) > 0.01
    assert 1 <= float(rows[-1]["val/length"]) <= 6
    assert float(rows[-1]["val/loss"]) == pytest.approx(
        0.01 * float(rows[-1]["val/kl"]) - float(rows[-1]["val/reward"]), abs=1e-6
    )


def test_sharded_model_is_refused_before_a_folder_is_made(grpo, tmp_path, monkeypatch):
    divided = Hardware("cpu", devices=2, strategy=FSDP(), precision=32)
    monkeypatch.setattr(Hardware, "resolve", lambda hardware: divided)
    with pytest.raises(ConfigError, match=r"task: GRPO: .* use hardware=ddp"):
        grpo("run")
    assert not (tmp_path / "run").exists()


def test_larger_beta_keeps_the_kl_divergence_smaller(grpo, logged):
    words = ("trainer.max_steps=20", "trainer.val_every=20")
    free, held = (
        logged(grpo(f"beta{beta}", *words, f"task.beta={beta}"))[-1] for beta in ("0.0", "3.0")
    )
    assert float(held["val/kl"]) < 0.3 * float(free["val/kl"])
    assert float(held["val/reward"]) < float(free["val/reward"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_grpo_resumes_to_the_bit(train, interrupted, questions, logged, accumulate):
    words = (*WORDS, f"data.path={questions}", "task.group_size=3", "trainer.log_every=2")
    words = (*words, f"trainer.accumulate={accumulate}", "trainer.max_steps=6")
    whole, parts = train("whole", *words), interrupted("parts", *words, step=4)
    assert logged(whole) == logged(parts)
    left, right = (torch.load(run.last, weights_only=True)["state_dict"] for run in (whole, parts))
    assert all(torch.equal(left[key], right[key]) for key in left)


class Stub:
    """The parts of a tokenizer and a trainer that a step needs."""

    def decode(self, tokens):
        return "".join(chr(96 + token) for token in tokens)


@pytest.fixture
def task(build_task):
    return build_task()


@pytest.fixture
def build_task(build):
    """build_task(reward): return the task with a model of 27 tokens, the first of which is the end."""

    def make(reward=lambda prompts, responses, references: [1.0 for _ in responses]):
        task = GRPO(
            build(vocab_size=27),
            optimizer=partial(torch.optim.SGD, lr=0.1),
            schedule=constant,
            parameter_groups=decay_matrices,
            reward=reward,
            reference=FrozenCopy(),
            group_size=4,
            max_tokens=5,
            seed=3,
        )
        task.tokenizer, task.end_token = Stub(), 0
        task.reference.start(task.model.eval())
        return task

    return make


def batch_of(*rows):
    """Return padded rows of (prompt, response)."""
    pairs = [join_response(*row) for row in rows]
    longest = max(len(pair["tokens"]) for pair in pairs)
    fill = {"tokens": 0, "targets": -100}
    return {
        name: torch.tensor(
            [pair[name] + [fill[name]] * (longest - len(pair[name])) for pair in pairs]
        )
        for name in fill
    }


def test_prompts_end_where_the_last_response_begins(task):
    batch = batch_of(([1, 2, 3], [4, 5, 0]), ([6, 7], [8, 0]), ([9], [1, 0]))
    batch["targets"][1] = -100  # a row without targets
    first, last = task.prompts(batch)
    assert (first.tokens, first.text, first.reference) == ([1, 2, 3], "abc", "de")
    assert (last.tokens, last.reference) == ([9], "a")
    several = {  # a b [c END] d e [f END]: the last of two responses is the reference
        "tokens": torch.tensor([[1, 2, 3, 0, 4, 5, 6]]),
        "targets": torch.tensor([[-100, 3, 0, -100, -100, 6, 0]]),
    }
    (prompt,) = task.prompts(several)
    assert (prompt.tokens, prompt.reference) == ([1, 2, 3, 0, 4, 5], "f")


def test_responses_depend_only_on_seed_and_number(task):
    prompts = task.prompts(batch_of(([1, 2, 3], [4, 0]), ([5], [6, 0]))) * 4
    torch.manual_seed(1)
    first, _ = task.respond(prompts, 7)
    torch.manual_seed(2)
    again, _ = task.respond(prompts, 7)
    other, _ = task.respond(prompts, 8)
    assert torch.equal(first["tokens"], again["tokens"])
    assert first["tokens"].shape != other["tokens"].shape or not torch.equal(
        first["tokens"], other["tokens"]
    )


def test_the_reward_receives_prompts_responses_and_references(build_task):
    seen = []

    def reward(prompts, responses, references):
        seen.append((prompts, responses, references))
        return [len(response) for response in responses]

    task = build_task(reward)
    batch, rewards = task.respond(task.prompts(batch_of(([1, 2, 3], [4, 5, 0]))) * 6, 0)
    ((prompts, responses, references),) = seen
    assert set(prompts) == {"abc"}
    assert set(references) == {"de"}
    assert rewards.tolist() == [len(response) for response in responses]
    for row, response in enumerate(responses):
        asked = batch["targets"][row][batch["targets"][row] != -100].tolist()
        assert task.text(asked) == response
        assert asked.count(0) <= 1, "a response ends once"
        assert len(asked) == 5 or asked[-1] == 0
        assert batch["tokens"][row, :3].tolist() == [1, 2, 3]


def test_equal_rewards_in_a_group_give_no_gradient(build_task):
    """With equal rewards the gradient is that of the KL divergence, which is 0 at the start."""
    task = build_task()
    task.step(batch_of(([1, 2, 3], [4, 0]), ([5], [6, 0]))).backward()
    gradients = [p.grad.abs().max() for p in task.model.parameters() if p.grad is not None]
    assert max(gradients) < 1e-6

    task = build_task(
        lambda prompts, responses, references: [float(sum(map(ord, r))) for r in responses]
    )
    task.step(batch_of(([1, 2, 3], [4, 0]), ([5], [6, 0]))).backward()
    assert max(p.grad.abs().max() for p in task.model.parameters()) > 1e-3


@pytest.mark.parametrize("scores", [[1.0], [float("nan")] * 8])
def test_reward_with_invalid_scores_is_named(build_task, scores):
    task = build_task(lambda prompts, responses, references: scores)
    with pytest.raises(ValueError, match="the reward gave"):
        task.step(batch_of(([1, 2, 3], [4, 0]), ([5], [6, 0])))


def test_data_without_prompts_are_refused(grpo):
    with pytest.raises(ConfigError, match=r"data\.loss_on=response"):
        grpo("run", "data.loss_on=all")
    with pytest.raises(ConfigError, match=r"data/collation=padding"):
        grpo("other", "data/collation=packing")


def test_user_reward_is_called_if_its_module_is_trusted(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def vowels(prompts, responses, references, weight: float) -> list[float]:\n"
        "    return [weight * sum(c in 'aeiou' for c in response) for response in responses]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "mine.vowels", "_partial_": True, "weight": 2.0}
    with pytest.raises(ConfigError, match="not on the allowlist"):
        build(OmegaConf.create({"reward": node}).reward)
    trusting = OmegaConf.create({"reward": node, "trust": ["mine"]})
    assert build(trusting.reward)(["p"], ["aloe"], ["r"]) == [6.0]
