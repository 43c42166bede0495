"""Every option of conf/optimizer reduces a loss, with groups, schedule and checkpoint."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from torch import nn

from llm.config.build import build
from llm.optim.groups import decay_matrices
from llm.optim.schedules import cosine

OPTIONS = sorted((Path(__file__).parents[2] / "conf" / "optimizer").glob("*.yaml"))
STEPS = {"muon_slow": 300}  # the others need 150


def factory(option):
    with initialize_config_module("llm.conf", version_base="1.3"):
        made = build(compose(overrides=[f"+optimizer={option.stem}"]).optimizer)
    assert isinstance(made, partial)
    return made


def problem():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(11, 16),
            "blocks": nn.ModuleList([nn.Linear(16, 32), nn.Linear(32, 16)]),
            "norm": nn.LayerNorm(16),
            "head": nn.Linear(16, 11, bias=False),
        }
    )

    def loss():
        x = model["embedding"](torch.arange(11))
        x = x + model["blocks"][1](F.gelu(model["blocks"][0](x)))
        return F.cross_entropy(model["head"](model["norm"](x)), (torch.arange(11) * 3 + 1) % 11)

    return model, loss


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.stem)
def test_option_memorizes_a_table(option, tmp_path):
    model, loss = problem()
    optimizer = factory(option)(decay_matrices(model))
    steps = STEPS.get(option.stem, 150)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine(step, steps, warmup_steps=5)
    )
    start = loss().item()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        scheduler.step()
    assert loss().item() < start / 2

    torch.save(optimizer.state_dict(), tmp_path / "optimizer")
    state = torch.load(tmp_path / "optimizer", weights_only=True)
    factory(option)(decay_matrices(problem()[0])).load_state_dict(state)


def test_options_are_all_optimizers():
    expected = ["adagrad", "adam", "adamw", "muon", "muon_slow", "rmsprop", "sgd"]
    assert [option.stem for option in OPTIONS] == expected
