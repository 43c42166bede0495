"""Tensor parallelism: the training of one device, with and without groups of devices."""

import pytest
from divided import MUON, assert_alike, train, train_all, write_text
from ranks import on_ranks

from llm.hardware import Hardware
from llm.strategies.tensor_parallel import TensorParallel


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    return write_text(tmp_path)


def test_two_and_four_ranks_learn_as_one(text, tmp_path):
    runs = {
        "tied": (text, "trainer.accumulate=2", "hardware.activation_checkpointing=true"),
        "muon": (text, "model=gpt", "size.num_kv_heads=2", *MUON),
        "grouped": (text, "model=llama", "size.num_kv_heads=2", *MUON),
    }
    alone = train_all(tmp_path / "1", runs)
    for world in (2, 4):
        names = ("tied", "muon") if world == 2 else ("grouped",)
        words = ("hardware=tensor_parallel", "hardware.strategy.size=2")
        divided = {name: (*runs[name], *words) for name in names}
        for name, curve in on_ranks(world, train_all, tmp_path / str(world), divided)[0].items():
            assert_alike(curve, alone[name])


def test_updates_are_divided_as_their_layers_are(text, tmp_path):
    train(tmp_path / "base", (text,))
    base = (text, "weights=run", f"weights.path={tmp_path / 'base'}", "adapter=lora")
    runs = {
        "parts": (*base, "adapter.targets=[query,value,output]"),
        "all": (*base, "adapter.targets=['query_key_value','*feed_forward*','head']"),
    }
    alone = train_all(tmp_path / "1", runs)
    divided = {name: (*words, "hardware=tensor_parallel") for name, words in runs.items()}
    for name, curve in on_ranks(2, train_all, tmp_path / "2", divided)[0].items():
        assert_alike(curve, alone[name])


def test_groups_that_do_not_divide_the_devices_are_refused():
    hardware = Hardware("cuda", devices=4, strategy=TensorParallel(3), precision="bf16")
    with pytest.raises(ValueError, match=r"strategy\.size=3 does not divide 4 devices"):
        TensorParallel(3).check(hardware)


@pytest.mark.parametrize(("size", "groups"), [(None, 1), (2, 4), (1, 8)])
def test_groups_read_batches_of_their_own(size, groups):
    assert TensorParallel(size).data_parallel(8) == groups
