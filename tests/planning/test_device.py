"""The device to plan for: a GPU by its name, or this machine."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from llm.config.errors import ConfigError
from llm.gpus import GPUS
from llm.hardware import Hardware
from llm.planning.device import named_device, present_device


@pytest.mark.parametrize("word", ["RTX 4090", "rtx4090", "rtx_4090"])
def test_gpu_is_found_by_any_spelling_of_its_name(word):
    device = named_device(word, Hardware())
    assert (device.name, device.accelerator, device.precision) == ("RTX 4090", "cuda", "bf16")
    assert device.memory == 24 * 2**30
    assert device.flops == GPUS["RTX 4090"].bfloat16_flops


def test_precision_follows_the_gpu_unless_it_is_set():
    assert named_device("v100", Hardware()).precision == "fp16"
    device = named_device("h100", Hardware(precision=32))
    assert (device.precision, device.dtype) == (32, torch.float32)
    assert device.flops == 67e12 < named_device("h100", Hardware()).flops


@pytest.mark.parametrize(("precision", "rate"), [(32, 19.5e12), ("bf16", 312e12)])
def test_gpu_of_this_machine_is_found_by_its_drivers_name(precision, rate, monkeypatch):
    cuda = {
        "is_available": lambda: True,
        "get_device_name": lambda *device: "NVIDIA A100-SXM4-80GB",
        "get_device_properties": lambda device: SimpleNamespace(total_memory=80e9),
    }
    for name, said in cuda.items():
        monkeypatch.setattr(torch.cuda, name, said)
    device = present_device(Hardware(accelerator="cuda", precision=precision))
    assert (device.flops, device.memory) == (rate, 80e9)


def test_an_unknown_gpu_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean RTX 4090"):
        named_device("rtx4091", Hardware())


def test_this_machine_is_measured(monkeypatch):
    monkeypatch.setattr("llm.planning.device.matmul_rate", lambda dtype: 5e10)
    device = present_device(Hardware(accelerator="cpu", precision=32))
    assert (device.name, device.flops) == ("cpu", 5e10)
    assert device.memory == psutil.virtual_memory().total


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_must_be_named_on_a_machine_without_one():
    with pytest.raises(ConfigError, match="gpu=h100"):
        present_device(Hardware(accelerator="cuda"))
