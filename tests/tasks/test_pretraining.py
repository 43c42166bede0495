"""Pretraining: it learns, and its losses equal those stored in trace.json."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module

from llm.config.build import build

TRACES = json.loads(Path(__file__).with_name("trace.json").read_text())


def losses(model: str, steps: int, optimizer: str = "adamw") -> list[float]:
    """Return the losses of the first steps of a preset, perhaps with overrides, on one random batch, in float32."""
    words = [
        *f"model={model}".split(),
        "size=nano",
        "model.vocab_size=61",
        f"optimizer={optimizer}",
    ]
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", [*words, "tokenizer=byte"])
    torch.manual_seed(1)
    task = build(config.task)
    tokens = torch.randint(61, (4, 33), generator=torch.Generator().manual_seed(2))
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    optimizer = task.make_optimizer(task.parameter_groups(task.model))
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = task.step(batch)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("model", TRACES)
def test_losses_equal_the_stored_trace(model):
    """Sixteen losses from a fixed seed: any change of the arithmetic is visible here first."""
    stored = TRACES[model]
    assert losses(model, len(stored)) == pytest.approx(stored, rel=2e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_batch_is_memorized(optimizer):
    found = losses("gpt", 120, optimizer)
    assert found[0] == pytest.approx(torch.tensor(61.0).log().item(), rel=0.1)
    assert found[-1] < 0.1
