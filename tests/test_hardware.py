"""Hardware settings: `auto` is resolved, and missing hardware is reported."""

from dataclasses import replace

import pytest
import ranks
import torch

from llm.hardware import Hardware, describe_hardware, share_of_cores
from llm.parallel.ddp import DDP
from llm.parallel.fsdp import FSDP
from llm.parallel.pipeline import Pipeline
from llm.parallel.tensor_parallel import TensorParallel
from llm.parallel.zero import ZeRO


def test_auto_becomes_values_that_lightning_accepts():
    resolved = Hardware().resolve()
    assert resolved.accelerator in ("cpu", "cuda", "mps")
    assert isinstance(resolved.devices, int)
    assert resolved.precision in (32, "bf16", "fp16")
    assert resolved.lightning_precision in ("32-true", "bf16-mixed", "16-mixed")
    assert str(resolved.devices) in describe_hardware(resolved)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_named_with_a_remedy():
    with pytest.raises(
        ValueError, match="accelerator=cuda: this machine has none; use hardware=cpu"
    ):
        Hardware(accelerator="cuda").resolve()


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="fp16 needs a GPU: use bf16 or 32"):
        Hardware(accelerator="cpu", precision="fp16").resolve()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"devices": 0}, "devices=0"),
        ({"devices": 2}, "devices=2.*need a strategy; choose one with hardware=ddp"),
        ({"num_nodes": 0}, "num_nodes=0"),
        ({"workers": -1}, "workers=-1"),
        ({"threads": 0}, "threads=0"),
    ],
)
def test_numbers_out_of_range_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        Hardware(**setting)


def test_several_devices_are_counted_and_described():
    hardware = Hardware(accelerator="cpu", devices=2, num_nodes=3, strategy=DDP(), precision=32)
    assert hardware.place().world == 6
    assert describe_hardware(hardware.resolve()) == "3 machines × 2 × cpu, DDP, precision 32"


def test_one_device_needs_no_strategy():
    assert Hardware(accelerator="cpu", devices="auto", strategy=DDP()).place().strategy is None


def test_strategy_is_checked_even_for_one_device(monkeypatch):
    monkeypatch.setattr("llm.parallel.zero.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs DeepSpeed"):
        Hardware(accelerator="cpu", strategy=ZeRO()).place()
    with pytest.raises(ValueError, match="precision=fp16: sharded weights"):
        Hardware(accelerator="cpu", strategy=FSDP(), precision="fp16").place()


def test_sharded_weights_train_in_float32_even_if_fp16_is_faster(monkeypatch):
    monkeypatch.setattr("llm.hardware.faster_precision", lambda accelerator: "fp16")
    for divided in (FSDP(), TensorParallel(), Pipeline()):
        hardware = Hardware(accelerator="cpu", devices=2, strategy=divided)
        assert hardware.resolve().precision == 32
    assert Hardware(devices=2, strategy=DDP()).choose_precision(lambda: "fp16") == "fp16"


def test_number_of_started_ranks_is_used(monkeypatch):
    for name, value in ranks.environment_of(rank=1, world=4, port=1).items():
        monkeypatch.setenv(name, value)
    asked = Hardware(accelerator="cpu", devices="auto", strategy=DDP())
    assert asked.place().devices == 4
    with pytest.raises(
        ValueError, match=r"devices=2.* 4 processes were started on each of 1 machines"
    ):
        replace(asked, devices=2).place()
    with pytest.raises(ValueError, match="choose one with hardware=ddp"):
        Hardware(accelerator="cpu", devices="auto").place()


def test_ranks_share_the_cores(monkeypatch):
    for name, value in ranks.environment_of(rank=0, world=2, port=1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(9)), raising=False)
    assert share_of_cores() == 4
