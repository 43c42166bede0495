"""The choice of the faster precision."""

from types import SimpleNamespace

import pytest
import torch

from llm import precision
from llm.precision import faster_precision, matmul_rate, peak_flops


def test_cpu_uses_bfloat16_only_if_it_is_faster():
    gain = matmul_rate(torch.bfloat16) / matmul_rate(torch.float32)
    if not 1.2 < gain < 1.9:  # near the threshold of 1.5 a measurement may fall on either side
        assert faster_precision("cpu") == ("bf16" if gain > 1.5 else 32)


def test_peak_rate_of_mfu_grows_with_devices():
    rate = peak_flops(torch.device("cpu"), torch.float32, devices=1)
    assert rate is not None
    assert rate > 1e8, "even a slow core does a hundred million products a second"


@pytest.mark.parametrize(("speed", "largest"), [(1e11, 1024), (3e9, 512), (1e8, 128)])
def test_an_emulated_type_is_measured_with_small_products(monkeypatch, speed, largest):
    now, sizes = 0.0, []

    def multiply(left, right):
        nonlocal now
        sizes.append(len(left))
        now += 2 * len(left) ** 3 / speed

    monkeypatch.setattr(precision, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(torch, "mm", multiply)
    assert precision._matmul_rate.__wrapped__(torch.float32, 1) == pytest.approx(speed)
    assert max(sizes) == largest
    assert now < 1
