"""What a plan is made for: this machine, or a GPU that need not be here."""

from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from llm.config.errors import ConfigError, suggestion
from llm.gpus import GPU, GPUS, find_gpu
from llm.hardware import Hardware
from llm.precision import faster_precision, matmul_rate


@dataclass(frozen=True)
class Device:
    """What computes.

    Attributes:
        name: of the GPU, or `cpu`.
        accelerator: `cuda`, `mps` or `cpu`.
        memory: in bytes.
        precision: what matrix products are computed in, `bf16`, `fp16` or 32.
        flops: the rate of matrix products in that precision, in FLOP/s; None where nobody knows. MFU as it
            is logged in training is of the bfloat16 rate, whatever the precision.
    """

    name: str
    accelerator: str
    memory: float
    precision: Any
    flops: float | None

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return dtypes.get(str(self.precision), torch.float32)

    def shared(self, ranks: int) -> "Device":
        """What each of so many ranks has of it, as those of one machine have of its CPU."""
        flops = self.flops and self.flops / ranks
        return replace(self, memory=self.memory / ranks, flops=flops)


def named(gpu: str, hardware: Hardware) -> Device:
    """A GPU by its name, in any case, such as `h100`.

    Raises:
        ConfigError: nothing is known of it.
    """
    name = {key.upper().replace(" ", ""): key for key in GPUS}.get(
        gpu.upper().replace(" ", "").replace("_", "")
    )
    if name is None:
        raise ConfigError(f"gpu={gpu}: not known here; {suggestion(gpu.upper(), GPUS)}")
    found = GPUS[name]
    automatic = "bf16" if found.has_bfloat16 else "fp16"
    precision = hardware.suited(automatic) if hardware.precision == "auto" else hardware.precision
    return Device(name, "cuda", found.memory * 2**30, precision, _rate(found, precision))


def present(hardware: Hardware) -> Device:
    """What this machine computes on, measured where it is a CPU.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    accelerator = _accelerator(hardware.accelerator)
    precision = hardware.precision
    if precision == "auto":
        precision = hardware.suited(faster_precision(accelerator))
    if accelerator == "cuda":
        name = torch.cuda.get_device_name()
        memory = float(torch.cuda.get_device_properties("cuda").total_memory)
        found = find_gpu(name)
        return Device(name, accelerator, memory, precision, found and _rate(found, precision))
    memory = float(psutil.virtual_memory().total)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rate = None if accelerator == "mps" else matmul_rate(dtype)
    return Device(accelerator, accelerator, memory, precision, rate)


def _rate(gpu: GPU, precision: Any) -> float:
    return gpu.float32_flops if precision == 32 else gpu.bfloat16_flops


def _accelerator(requested: str) -> str:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    wanted = {"auto": ("cuda", "mps"), "gpu": ("cuda", "mps"), "cpu": ()}.get(
        requested, (requested,)
    )
    found = next((name for name in wanted if there[name]), None)
    if found is None and requested not in ("auto", "cpu"):
        raise ConfigError(
            f"hardware.accelerator={requested}: this machine has none; name the one you plan for, such as gpu=h100"
        )
    return found or "cpu"
