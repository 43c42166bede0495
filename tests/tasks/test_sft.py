"""Instruction finetuning: the loss is that of the responses, for every division of a step."""

import json
import math

import pytest
import torch
from hydra import compose, initialize_config_module
from small_runs import run_command

from llm.config.build import build
from llm.nn.ignore_index import IGNORE_INDEX
from llm.training import lifecycle


@pytest.fixture
def composed(tmp_path, monkeypatch):
    """Compose a small run over sums of two digits, whose responses have different lengths."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "sums.jsonl"
    rows = [
        {"instruction": f"{a}+{b}", "output": ".".join(str(a + b) * (1 + a))}
        for a in range(6)
        for b in range(10)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))

    def composed(*words):
        small = [
            "experiment=instruct",
            "model=gpt2",
            "size=nano",
            "size.dim=32",
            "tokenizer=byte",
            "data=instruction",
            f"data.path={path}",
            "data/template=chatml",
            "data/collation=padding",
            "data.validation_fraction=0.1",
            "hardware=cpu",
            "hardware.precision=32",
            "hardware.threads=1",
            "optimizer.fused=false",
            "schedule=constant",
            "schedule.warmup_steps=0",
            "trainer.max_epochs=null",
            "trainer.max_steps=3",
            "trainer.val_every=3",
            "callbacks.response_samples=null",
            "callbacks.responses=null",
            "callbacks.picture=null",
        ]
        with initialize_config_module("llm.conf", version_base="1.3"):
            return compose("train", [*small, *words])

    return composed


def weights(run):
    return torch.load(run.last, weights_only=True)["state_dict"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_accumulation_does_not_change_the_weights(composed, tmp_path, optimizer):
    words = [f"optimizer={optimizer}", "trainer.gradient_clip=0.5"]
    # If a gradient is almost 0, Adam divides one rounding error by another; a larger eps prevents that.
    words += ["+optimizer.eps=1e-4"] if optimizer == "adamw" else ["optimizer.lr=0.1"]
    whole, *divided = (
        weights(
            run_command(
                composed(*words, f"data.batch_size={size}", f"trainer.accumulate={8 // size}"),
                tmp_path / f"{size}",
            )
        )
        for size in (8, 4, 1)
    )
    for parts in divided:
        for name in whole:
            torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-5)


def test_micro_batches_have_different_numbers_of_targets(composed):
    """So a mean of the means of micro-batches would fail the comparison above."""
    data = lifecycle.prepare_data(composed("data.batch_size=4"), None)
    task = build(composed("model.vocab_size=400").task)
    loader = iter(data.train_dataloader())
    numbers = {int(task.weight(next(loader))) for _ in range(4)}
    assert len(numbers) > 1


def test_packed_and_padded_validation_agree(composed, tmp_path):
    """The trainer validates on the whole part; loss and perplexity agree to five digits."""
    metrics = [
        run_command(
            composed(f"data/collation={collation}", "optimizer.lr=0", f"data.batch_size={size}"),
            tmp_path / collation,
        ).record["metrics"]
        for collation, size in (("padding", 8), ("length_grouped", 3), ("packing", 2))
    ]
    for name in ("val/loss", "val/perplexity", "test/loss"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], rel=1e-5)
        assert metrics[2][name] == pytest.approx(metrics[0][name], rel=1e-5)
    assert metrics[0]["val/perplexity"] == pytest.approx(math.exp(metrics[0]["val/loss"]))


def test_only_targets_count_in_loss_and_weight(composed):
    task = build(composed("model.vocab_size=61").task)
    torch.manual_seed(0)
    tokens = torch.randint(61, (2, 9))
    targets = tokens.roll(-1, 1)
    targets[0, :6] = IGNORE_INDEX
    batch = {"tokens": tokens, "targets": targets}
    logits = task.model(tokens)
    by_hand = [
        -logits[row, position].log_softmax(-1)[targets[row, position]]
        for row in range(2)
        for position in range(9)
        if targets[row, position] != IGNORE_INDEX
    ]
    assert task.weight(batch) == len(by_hand) == 12
    assert task.step(batch).item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)
    task.evaluate(batch)
    results = task.results()
    assert results["loss"] == pytest.approx(task.step(batch).item(), rel=1e-5)
    task.evaluate({**batch, "targets": torch.full_like(targets, 3)})
    assert task.results()["loss"] != results["loss"], "each call of results() starts a new mean"
