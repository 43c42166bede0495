"""Fully sharded data parallelism: the training of one device, whatever is trained and how."""

import pytest
import torch
from divided import MUON, assert_alike, train, train_all, write_messages, write_text
from ranks import on_ranks

from llm.hardware import Hardware
from llm.strategies.fsdp import FSDP

CLASSES = ("task=classification", "data=labelled", "data.test_fraction=0.1", "data.balance=weights")
ACCUMULATED = ("trainer.accumulate=2", "hardware.activation_checkpointing=true")


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    return write_text(tmp_path)


def test_two_and_four_ranks_learn_as_one(text, tmp_path):
    runs = {
        "tied": (text, *ACCUMULATED),
        "muon": (text, "model=gpt", "size.num_kv_heads=2", *MUON),
        "grouped": (text, "model=llama", "size.num_kv_heads=2"),
        "classes": (*CLASSES, f"data.path={write_messages(tmp_path)}"),
    }
    alone = train_all(tmp_path / "1", runs)
    for world in (2, 4):
        names = ("tied", "muon") if world == 2 else ("grouped", "classes")
        divided = {name: (*runs[name], "hardware=fsdp") for name in names}
        for name, curve in on_ranks(world, train_all, tmp_path / str(world), divided)[0].items():
            assert_alike(curve, alone[name])


def test_updates_are_trained_beside_frozen_weights_in_half_precision(text, tmp_path):
    train(tmp_path / "base", (text,))
    base = (text, "weights=run", f"weights.path={tmp_path / 'base'}")
    words = (*base, "adapter=lora", "adapter.frozen_dtype=bfloat16")
    alone = train(tmp_path / "alone", words)
    assert_alike(on_ranks(2, train, tmp_path / "two", (*words, "hardware=fsdp"))[0], alone)


def test_gradient_scaling_is_refused():
    hardware = Hardware("cuda", devices=2, strategy=FSDP(), precision="fp16")
    with pytest.raises(ValueError, match=r"precision=fp16: .* use hardware\.precision=bf16"):
        FSDP().check(hardware)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("strategy", ["fsdp", "tensor_parallel"])
def test_two_gpus_learn_as_one_cpu(text, tmp_path, strategy):
    alone = train(tmp_path / "alone", (text,))
    words = (text, f"hardware={strategy}", "hardware.devices=2", "hardware.accelerator=gpu")
    for row, other in zip(on_ranks(2, train, tmp_path / "two", words)[0], alone, strict=True):
        assert row == pytest.approx(other, rel=1e-3, nan_ok=True)
