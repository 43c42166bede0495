"""DPO: the initial loss, learning, the reference, and resume."""

import math

import pytest
import torch

from llm.config.build import build
from llm.config.errors import ConfigError
from llm.weights.run import RunWeights

DPO = ("task=dpo", "data=preference", "optimizer.lr=0.01")
LORA = ("adapter=lora", "task/reference=adapter_off")


@pytest.fixture
def dpo(train, pairs):
    """Run DPO: with an adapter it starts from weights trained for one step, without one from random weights."""

    def run(name, *words):
        words = (*DPO, f"data.path={pairs}", *words)
        if "adapter=lora" in words:
            few = ("trainer.max_steps=1", "trainer.val_every=1", "optimizer.lr=0.0")
            base = train("base", *words[:2], words[3], *few)
            words = (*words, "weights=run", f"weights.path={base.path}")
        return train(name, *words)

    return run


def column(rows, name):
    return [float(row[name]) for row in rows if row.get(name)]


@pytest.mark.parametrize("words", [(), ("task.reduction=mean",), LORA], ids=["sum", "mean", "lora"])
def test_loss_starts_at_ln_2_with_margin_0_and_falls(dpo, logged, words):
    """Dropout of the model must not change the first loss."""
    run = dpo("run", "trainer.max_steps=40", "trainer.val_every=20", *words)
    rows = logged(run)
    first = next(row for row in rows if row["step"] == "1")
    validations = [row for row in rows if row.get("val/loss")]
    assert float(first["train/loss"]) == pytest.approx(math.log(2), abs=1e-6)
    for name in ("margin", "chosen_reward", "rejected_reward"):
        assert float(first[f"train/{name}"]) == 0, name
    last = validations[-1]
    assert float(last["val/loss"]) < 0.3
    assert float(last["val/accuracy"]) == 1
    margin = float(last["val/chosen_reward"]) - float(last["val/rejected_reward"])
    assert float(last["val/margin"]) == pytest.approx(margin, abs=1e-5)
    assert run.record["metrics"]["test/margin"] > 0.5


def test_the_margin_follows_the_papers_equation(dpo, train, logged, pairs):
    """Compute the logged validation margin from the weights before and after training."""
    base = dpo("base", "trainer.max_steps=1", "trainer.val_every=1", "optimizer.lr=0.0")
    weights = ("weights=run", f"weights.path={base.path}")
    run = dpo("run", *weights, "task.beta=0.3", "trainer.val_every=6")
    before, after = (RunWeights(str(each.path)).model() for each in (base, run))
    data = build(
        RunWeights(str(run.path)).config.data, tokenizer=RunWeights(str(run.path)).tokenizer()
    )
    data.setup()
    margins = []
    for pair in data.raw["validation"]:
        ratios = []
        for response in (pair.chosen, pair.rejected):
            prompt = data.template.encode_prompt(pair.prompt, data.tokenizer)
            answer = [*data.tokenizer.encode(response), data.template.end_token(data.tokenizer)]
            tokens = torch.tensor([prompt + answer])
            found = [
                sum(
                    model(tokens[:, :-1])[0, at - 1].log_softmax(-1)[tokens[0, at]]
                    for at in range(len(prompt), tokens.shape[1])
                )
                for model in (after, before)
            ]
            ratios.append(found[0] - found[1])
        margins.append(0.3 * (ratios[0] - ratios[1]).item())
    expected = sum(margins) / len(margins)
    assert column(logged(run), "val/margin")[-1] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("words", [(), LORA], ids=["frozen_copy", "adapter_off"])
def test_resumed_run_keeps_its_reference_and_equals_the_whole_one(
    dpo, train, interrupted, pairs, logged, words
):
    base = dpo("base", "trainer.max_steps=3", "trainer.val_every=3")
    words = (*DPO, f"data.path={pairs}", "weights=run", f"weights.path={base.path}", *words)
    whole = train("whole", *words, "trainer.log_every=2")
    parts = interrupted("parts", *words, "trainer.log_every=2", step=4)
    assert logged(whole) == logged(parts)
    for name in ("last", "best"):
        left, right = (
            torch.load(getattr(run, name), weights_only=True)["state_dict"]
            for run in (whole, parts)
        )
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_a_checkpoint_does_not_contain_the_reference(dpo):
    run = dpo("run")
    state = torch.load(run.last, weights_only=True)["state_dict"]
    model = RunWeights(str(run.path)).model()
    assert state.keys() == {f"model.{name}" for name in model.state_dict()}


def test_frozen_copy_and_switched_off_adapter_give_the_same_loss(dpo, logged):
    adapted = logged(dpo("off", *LORA))
    copied = logged(dpo("copy", LORA[0]))
    assert column(adapted, "val/loss") == pytest.approx(column(copied, "val/loss"), abs=1e-6)
    assert column(adapted, "val/loss")[-1] < 0.6


def test_switched_off_adapter_as_reference_needs_an_adapter(dpo):
    with pytest.raises(ConfigError, match=r"task: .*no adapter to switch off"):
        dpo("run", LORA[1])


@pytest.mark.parametrize(
    ("word", "message"), [("beta=0", "beta"), ("label_smoothing=0.5", "label")]
)
def test_numbers_out_of_range_are_named(dpo, word, message):
    with pytest.raises(ConfigError, match=rf"task\.{message}.*: give"):
        dpo("run", f"task.{word}")
