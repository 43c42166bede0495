"""Models that several devices cannot divide are refused in one line, before a device starts."""

import os

import pytest
import torch
from forked import llm
from omegaconf import OmegaConf

from llm.config.errors import ConfigError
from llm.hardware import Hardware
from llm.parallel.pipeline import Pipeline
from llm.parallel.tensor_parallel import TensorParallel
from llm.training.preflight import outline, require_division

TWO, THREE = (
    Hardware("cpu", devices=number, strategy=TensorParallel(), precision=32) for number in (2, 3)
)


@pytest.mark.parametrize(
    ("words", "hardware", "message"),
    [
        (("model=llama",), THREE, "num_heads=2 cannot be divided among 3 .*hardware.strategy.size"),
        (("model=llama", "size.num_kv_heads=1"), TWO, "num_kv_heads=1 cannot"),
        (
            ("experiment=spam", "model=bert"),
            TWO,
            "divides a GPT, and Classifier contains none: use hardware=fsdp",
        ),
        (
            ("experiment=reward",),
            Hardware("cpu", devices=2, strategy=Pipeline(), precision=32),
            "not Reward: use hardware=fsdp",
        ),
        (
            ("model/attention=value_residual",),
            Hardware("cpu", devices=2, strategy=Pipeline(), precision=32),
            "not the values that layer 2 reads of layer 1: use hardware=fsdp",
        ),
    ],
)
def test_model_or_task_that_cannot_be_divided_is_refused(composed, words, hardware, message):
    config = composed("data.batch_size=6")
    with pytest.raises(ConfigError, match=message) as refusal:
        require_division(composed("data.batch_size=6", *words), hardware)
    assert str(refusal.value).startswith("hardware.strategy: ")
    assert len(refusal.value.problems) == 1
    require_division(config, TWO)


def test_outline_has_shapes_and_changes_no_state(composed):
    config = composed()
    state = torch.get_rng_state()
    task = outline(config)
    assert {parameter.device.type for parameter in task.parameters()} == {"meta"}
    assert OmegaConf.is_missing(config.model, "vocab_size")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")])
def test_the_command_refuses_before_a_rank_or_a_job_starts(tmp_path, sweep):
    out, err = tmp_path / "out", tmp_path / "err"
    words = [
        *("train", "model=llama", "size=nano", "tokenizer=byte", "data.batch_size=6"),
        *("hardware=tensor_parallel", "hardware.devices=3", "hardware.accelerator=cpu"),
        *(f"output_dir={tmp_path / 'outputs'}", *sweep),
    ]
    assert llm(words, out, err, os.environ) == 2
    lines = err.read_text().splitlines()
    assert len(lines) == (2 if sweep else 1)
    assert all("hardware.strategy: num_heads=2 cannot be divided among 3" in line for line in lines)
    assert not list(tmp_path.glob("outputs/*/*/run.json"))
    assert not list(tmp_path.glob("outputs/sweeps/*"))
