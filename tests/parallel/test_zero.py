"""ZeRO with a fake DeepSpeed: its configuration, and what is refused."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from llm.hardware import Hardware, MemoryDivisors
from llm.optim.muon import Muon
from llm.parallel.zero import ZeRO
from llm.tasks.pretraining import Pretraining
from llm.tasks.sft import SFT


@pytest.fixture
def engine(monkeypatch):
    """Import the DeepSpeed strategy with a fake DeepSpeed that Lightning accepts."""
    deepspeed = ModuleType("deepspeed")
    deepspeed.__version__ = "0.19"
    deepspeed.utils = SimpleNamespace(
        logging=SimpleNamespace(logger=SimpleNamespace(setLevel=print))
    )
    monkeypatch.setitem(sys.modules, "deepspeed", deepspeed)
    for known in ("_DEEPSPEED_AVAILABLE", "_DEEPSPEED_GREATER_EQUAL_0_16"):
        monkeypatch.setattr(f"lightning.pytorch.strategies.deepspeed.{known}", True)

    from llm.parallel import deepspeed_strategy

    return deepspeed_strategy


def test_missing_deepspeed_is_reported_with_two_remedies(monkeypatch):
    monkeypatch.setattr("llm.parallel.zero.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"pip install 'llm-hydra\[deepspeed\]', or use hardware=fsdp"
    ):
        ZeRO().require()


def test_mps_is_refused():
    with pytest.raises(ValueError, match="does not support MPS"):
        ZeRO().check(Hardware("mps", devices=2, strategy=ZeRO()))


def test_weights_are_divided_only_in_stage_3():
    assert ZeRO(2).shares(4) == MemoryDivisors(1, 4, 4, 4, 4)
    assert ZeRO(3).shares(4) == MemoryDivisors(4, 4, 4, 4, 4)
    assert (ZeRO(2).is_sharded, ZeRO(3).is_sharded) == (False, True)


@pytest.mark.parametrize("stage", [2, 3])
def test_configuration_contains_the_stage(engine, stage):
    strategy = ZeRO(stage).lightning(Hardware("cuda", devices=2, strategy=ZeRO(stage)))
    assert strategy.config["zero_optimization"]["stage"] == stage
    assert strategy.config["zero_allow_untested_optimizer"]


def test_configuration_contains_clipping_and_accumulation_of_the_trainer(engine):
    strategy = ZeRO().lightning(Hardware("cuda", devices=2, strategy=ZeRO()))
    trainer = SimpleNamespace(accumulate_grad_batches=3, gradient_clip_val=0.7)
    strategy._lightning_module = SimpleNamespace(trainer=trainer)
    strategy._format_batch_size_and_grad_accum_config()
    assert strategy.config["gradient_clipping"] == 0.7
    assert strategy.config["gradient_accumulation_steps"] == 3


def test_only_elementwise_optimizers_are_accepted(engine):
    weight = nn.Parameter(torch.ones(2, 2))
    engine.require_elementwise(torch.optim.AdamW([weight]))
    with pytest.raises(ValueError, match="Muon does not work on: choose one of Adam, AdamW"):
        engine.require_elementwise(Muon([{"params": [weight], "hidden": True}]))


def test_task_that_weights_batches_by_their_targets_is_refused():
    def task(kind):
        return kind(
            nn.Linear(2, 2),
            optimizer=torch.optim.SGD,
            schedule=lambda step, steps: 1.0,
            parameter_groups=lambda model: [],
        )

    ZeRO().fits(task(Pretraining), 2)
    with pytest.raises(ValueError, match="SFT weights by its targets: use hardware=fsdp"):
        ZeRO().fits(task(SFT), 2)
