"""Fully sharded data parallelism: the same training as on one device, for all tasks."""

import pytest
import torch
from divided import MUON, assert_alike, assert_learn_as_one, train, write_messages
from ranks import on_ranks

from llm.hardware import Hardware
from llm.parallel.fsdp import FSDP

CLASSES = (
    *("task=classification", "task.model.dropout=0", "task.model.token_dropout=0"),
    *("data=labelled", "data.test_fraction=0.1", "data.balance=weights"),
)
ACCUMULATED = ("trainer.accumulate=2", "hardware.activation_checkpointing=true")


def test_two_and_four_ranks_learn_as_one(text, tmp_path):
    runs = {
        "tied": (text, *ACCUMULATED),
        "muon": (text, "model=gpt", "size.num_kv_heads=2", *MUON),
        "grouped": (text, "model=llama", "size.num_kv_heads=2"),
        "classes": (*CLASSES, f"data.path={write_messages(tmp_path)}"),
    }
    linked = ("model/attention=value_residual", "model/layers=shared_kv", "size.num_layers=4")
    runs["linked"] = (text, "model=llama", *linked, *ACCUMULATED)
    words = ("hardware=fsdp",)
    divided = {
        2: {"tied": words, "muon": words, "linked": words},
        4: {"grouped": words, "classes": words},
    }
    assert_learn_as_one(tmp_path, runs, divided)


@pytest.mark.parametrize(
    "model", ["gpt2", *(pytest.param(each, marks=pytest.mark.long) for each in ("mixtral", "lstm"))]
)
def test_adapter_trains_with_frozen_weights_in_half_precision(text, tmp_path, model):
    """All ranks generate the samples together."""
    train(tmp_path / "base", (text, f"model={model}"))
    base = (text, "weights=run", f"weights.path={tmp_path / 'base'}")
    samples = "{_target_:llm.callbacks.samples.Samples,prompts:[the,a cat],max_tokens:5}"
    words = (
        *(*base, "adapter=lora", "adapter.frozen_dtype=bfloat16"),
        f"callbacks.samples={samples}",
    )
    alone = train(tmp_path / "alone", words)
    assert_alike(on_ranks(2, train, tmp_path / "two", (*words, "hardware=fsdp"))[0], alone)
    texts = [(tmp_path / name / "samples.txt").read_text() for name in ("alone", "two")]
    assert texts[0] == texts[1] != ""


def test_gradient_scaling_is_refused():
    hardware = Hardware("cuda", devices=2, strategy=FSDP(), precision="fp16")
    with pytest.raises(ValueError, match=r"precision=fp16: .* use hardware\.precision=bf16"):
        FSDP().check(hardware)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "tensor_parallel", "pipeline"])
def test_two_gpus_learn_as_one_cpu(text, tmp_path, strategy):
    alone = train(tmp_path / "alone", (text,))
    words = (text, f"hardware={strategy}", "hardware.devices=2", "hardware.accelerator=gpu")
    for row, other in zip(on_ranks(2, train, tmp_path / "two", words)[0], alone, strict=True):
        assert row == pytest.approx(other, rel=1e-3, nan_ok=True)
