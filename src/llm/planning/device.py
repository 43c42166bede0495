"""The device that a plan is made for: this machine's, or any known GPU."""

from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from llm.config.errors import ConfigError, suggestion
from llm.gpus import GPU, GPUS, find_gpu
from llm.hardware import Hardware, available_accelerator
from llm.precision import faster_precision, matmul_rate


@dataclass(frozen=True)
class Device:
    """A device that a run is planned for.

    Attributes:
        name: name of the GPU, or `cpu`.
        accelerator: `cuda`, `mps` or `cpu`.
        memory: memory in bytes.
        precision: precision of matrix products: `bf16`, `fp16` or 32.
        flops: peak rate of matrix products in that precision, in FLOP/s; None if it is not known. The MFU in the
            training metrics always refers to the bfloat16 rate.
    """

    name: str
    accelerator: str
    memory: float
    precision: Any
    flops: float | None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return dtypes.get(str(self.precision), torch.float32)

    def shared(self, ranks: int) -> "Device":
        """Return the share of each rank, if `ranks` ranks share the device (a CPU)."""
        flops = self.flops and self.flops / ranks
        return replace(self, memory=self.memory / ranks, flops=flops)


def named_device(gpu: str, hardware: Hardware) -> Device:
    """Return a GPU by its name, in upper or lower case, such as `h100`.

    Raises:
        ConfigError: the GPU is not known.
    """
    names = {key.upper().replace(" ", ""): key for key in GPUS}
    name = names.get(gpu.upper().replace(" ", "").replace("_", ""))
    if name is None:
        raise ConfigError(f"gpu: {gpu} is not known; {suggestion(gpu.upper(), GPUS)}")
    found = GPUS[name]
    precision = hardware.choose_precision(lambda: "bf16" if found.has_bfloat16 else "fp16")
    return Device(name, "cuda", found.memory * 2**30, precision, _rate(found, precision))


def present_device(hardware: Hardware) -> Device:
    """Return the device of this machine; the rate of a CPU is measured.

    Raises:
        ConfigError: a GPU is requested and there is none.
    """
    try:
        accelerator = available_accelerator(hardware.accelerator)
    except ValueError as error:
        raise ConfigError(f"{error}, or name the GPU to plan for, such as gpu=h100") from error
    precision = hardware.choose_precision(lambda: faster_precision(accelerator))
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
