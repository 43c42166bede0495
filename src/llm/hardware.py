"""Where a run computes and in which precision: resolved once, printed, and saved with the run."""

import re
import time
from dataclasses import dataclass, replace
from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp16", 32]

# Dense bfloat16 matrix rate in FLOP/s from NVIDIA's datasheets, without sparsity. nanoGPT divides
# by an A100's whatever the card; Lightning 2.6 takes the sparse figure of an H200: hence our own table.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


@dataclass(frozen=True)
class Hardware:
    """The machine a run uses.

    Args:
        accelerator: `auto` takes a GPU (CUDA, then Apple's MPS) when there is one, else the CPU.
        devices: how many devices; one for now.
        precision: `bf16` or `fp16` (mixed), `32`, or `auto`: bf16 where it is measured faster.
        compile: compile the model and its loss with `torch.compile`.
        activation_checkpointing: recompute each block's activations in the backward pass to save memory.
        workers: data-loading processes; 0 loads in the training process.
        threads: CPU threads, or null for torch's own choice.
    """

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: int = 1
    precision: Precision = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    workers: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.devices != 1:
            raise ValueError(
                f"devices={self.devices}: training on several is not built yet; give 1"
            )
        if self.workers < 0:
            raise ValueError(
                f"workers={self.workers}: give 0 (load in the training process) or more"
            )
        if self.threads is not None and self.threads < 1:
            raise ValueError(
                f"threads={self.threads}: give a number from 1 on, or null for torch's choice"
            )

    def resolve(self) -> "Hardware":
        """Replace every `auto` by what this machine has; raises ValueError when what is asked is not there."""
        accelerator = _available(self.accelerator)
        precision = faster_precision(accelerator) if self.precision == "auto" else self.precision
        if precision == "fp16" and accelerator == "cpu":
            raise ValueError("hardware.precision=fp16 needs a GPU: use bf16 or 32 on the CPU")
        return replace(self, accelerator=accelerator, precision=precision)

    @property
    def lightning_precision(self) -> str:
        """The resolved precision in Lightning's words."""
        return {32: "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[self.precision]


def _available(accelerator: str) -> str:
    has_mps = torch.backends.mps.is_available()
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if accelerator == "gpu":
        accelerator = "mps" if has_mps and not torch.cuda.is_available() else "cuda"
    if (accelerator == "cuda" and not torch.cuda.is_available()) or (
        accelerator == "mps" and not has_mps
    ):
        raise ValueError(
            f"hardware.accelerator={accelerator}: this machine has none; use hardware=cpu or auto"
        )
    return accelerator


def faster_precision(accelerator: str) -> Precision:
    """bf16 where matrix products in it run at least 1.5 times as fast as in float32, else 32.

    GPUs answer by capability (compute capability 8.0 and later); a CPU is measured, for some have
    instructions for bfloat16 (AVX512-BF16, AMX) and others emulate it.
    """
    if accelerator == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if accelerator == "mps":
        return 32
    ratio = matmul_rate(torch.bfloat16) / matmul_rate(torch.float32)
    return "bf16" if ratio >= 1.5 else 32


def matmul_rate(dtype: torch.dtype, size: int = 1536, repeats: int = 5) -> float:
    """The best of several timed `size` × `size` CPU matrix products, in FLOP/s."""
    left, right = torch.ones(2, size, size, dtype=dtype).unbind()
    best = float("inf")
    torch.mm(left, right)  # the first product pays for allocation and kernel choice
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_flops(device: torch.device, dtype: torch.dtype, devices: int) -> float | None:
    """The matrix rate that MFU is measured against, in FLOP/s over all devices; None where nobody knows.

    A GPU's is the published dense bfloat16 figure, for float32 runs as well, so that precisions compare.
    A CPU publishes none, so its own measured product rate in `dtype` stands in for it.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        found = next(
            (rate for key, rate in PEAK_FLOPS.items() if re.search(rf"\b{key}\b", name)), None
        )
        return found and found * devices
    return matmul_rate(dtype) * devices if device.type == "cpu" else None


def describe(hardware: Hardware) -> str:
    """One line for the start of a run: device, count, precision."""
    name = torch.cuda.get_device_name() if hardware.accelerator == "cuda" else hardware.accelerator
    extras = [word for word in ("compile", "activation_checkpointing") if getattr(hardware, word)]
    return ", ".join([f"{hardware.devices} × {name}", f"precision {hardware.precision}", *extras])
