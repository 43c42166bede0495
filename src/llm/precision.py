"""The choice of a precision, and the speed of matrix products in it."""

import time
from functools import cache
from typing import Literal

import torch

from llm.gpus import find_gpu

Precision = Literal["auto", "bf16", "fp16", 32]

# Longest time of one matrix product, in seconds; sizes that would take longer are not measured.
MAX_SECONDS = 0.1


def faster_precision(accelerator: str) -> Precision:
    """Return the precision that `auto` selects.

    A CPU uses bf16 if a measured matrix product is at least 1.5 times as fast as in float32: some CPUs have bfloat16
    instructions (AVX512-BF16, AMX), others emulate them. CUDA uses bf16 from compute capability 8.0 on, otherwise
    fp16. MPS uses float32.
    """
    if accelerator == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if accelerator == "mps":
        return 32
    ratio = matmul_rate(torch.bfloat16) / matmul_rate(torch.float32)
    return "bf16" if ratio >= 1.5 else 32


@cache
def cpu_computes_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 matrices by instructions of its own.

    With AVX2 only, as on most laptops, they are emulated, and take twenty times as long as in float32.
    """
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def matmul_rate(dtype: torch.dtype) -> float:
    """Return the highest rate of several CPU matrix products, in FLOP/s; measured once for each number of threads."""
    return _matmul_rate(dtype, torch.get_num_threads())


@cache
def _matmul_rate(dtype: torch.dtype, threads: int, *, repeats: int = 5) -> float:
    seconds = rate = 0.0
    # A larger product has a higher rate, but one of size 1024 takes seconds where the type is emulated.
    for size in (128, 256, 512, 1024):
        if 8 * seconds > MAX_SECONDS:
            break
        left, right = torch.ones(2, size, size, dtype=dtype).unbind()
        # The first product is slower: it also allocates memory and selects a kernel.
        torch.mm(left, right)
        seconds = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            torch.mm(left, right)
            seconds = min(seconds, time.perf_counter() - start)
        rate = max(rate, 2 * size**3 / seconds)
    return rate


def peak_flops(device: torch.device, dtype: torch.dtype, *, devices: int) -> float | None:
    """Return the matrix rate that MFU is measured against, in FLOP/s over all devices; None if it is not known.

    For a GPU it is the published dense bfloat16 rate, also in float32 runs, so that precisions can be compared. For a
    CPU it is measured in `dtype`.
    """
    if device.type == "cuda":
        gpu = find_gpu(torch.cuda.get_device_name(device))
        return gpu and gpu.bfloat16_flops * devices
    return matmul_rate(dtype) * devices if device.type == "cpu" else None
