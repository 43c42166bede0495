"""Tensor parallelism: the same training as on one device, with one or several groups."""

import csv
from pathlib import Path

import pytest
from divided import MUON, assert_learn_as_one, train, write_messages
from ranks import on_ranks

from llm.hardware import Hardware
from llm.parallel.tensor_parallel import TensorParallel


def test_two_and_four_ranks_learn_as_one(text, tmp_path):
    runs = {
        "tied": (text, "trainer.accumulate=2", "hardware.activation_checkpointing=true"),
        "muon": (text, "model=gpt", "size.num_kv_heads=2", *MUON),
        "grouped": (text, "model=llama", "size.num_kv_heads=2", *MUON),
    }
    words = ("hardware=tensor_parallel", "hardware.strategy.size=2")
    assert_learn_as_one(tmp_path, runs, {2: {"tied": words, "muon": words}, 4: {"grouped": words}})


def test_adapters_are_divided_like_their_layers(text, tmp_path):
    train(tmp_path / "base", (text,))
    base = (text, "weights=run", f"weights.path={tmp_path / 'base'}", "adapter=lora")
    runs = {
        "parts": (*base, "adapter.targets=[query,value,output]"),
        "all": (*base, "adapter.targets=['query_key_value','*feed_forward*','head']"),
    }
    assert_learn_as_one(tmp_path, runs, {2: dict.fromkeys(runs, ("hardware=tensor_parallel",))})


def test_text_that_a_group_computes_together_counts_once(text, tmp_path):
    words = (
        *("task=classification", "data=labelled", f"data.path={write_messages(tmp_path)}"),
        *("data.test_fraction=0.25", "trainer.max_steps=2", "callbacks=classification"),
        "model/init=gpt2",  # with blocks that output 0, rounding would decide between equal logits
    )
    train(tmp_path / "1", words)
    on_ranks(2, train, tmp_path / "2", (*words, "hardware=tensor_parallel"))
    for name in ("confusion.csv", "predictions.csv"):
        one, two = (read(tmp_path / world / name) for world in "12")
        assert [row[:4] for row in one] == [row[:4] for row in two]


def read(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_groups_that_do_not_divide_the_devices_are_refused():
    hardware = Hardware("cuda", devices=4, strategy=TensorParallel(3), precision="bf16")
    with pytest.raises(ValueError, match=r"strategy\.size=3 does not divide 4 devices"):
        TensorParallel(3).check(hardware)


@pytest.mark.parametrize(("size", "groups"), [(None, 1), (2, 4), (1, 8)])
def test_each_group_reads_its_own_batches(size, groups):
    assert TensorParallel(size).data_parallel(8) == groups
