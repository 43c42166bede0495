"""Published properties of NVIDIA GPUs."""

import re
from typing import NamedTuple


class GPU(NamedTuple):
    """A GPU as its datasheet describes it.

    Attributes:
        bfloat16_flops: rate of matrix products in bfloat16 (in float16 if it has no bfloat16), in FLOP/s, without
            sparsity. nanoGPT uses an A100's for any GPU; Lightning 2.6 uses the sparse rate of an H200.
        float32_flops: rate in float32 without tensor cores, in FLOP/s, because TF32 is off by default in torch.
        memory: in GiB. Some are also sold with less (A100: 40, V100: 16).
        has_bfloat16: whether it has tensor cores for bfloat16.
    """

    bfloat16_flops: float
    float32_flops: float
    memory: int
    has_bfloat16: bool = True


GPUS = {
    "B200": GPU(2250e12, 75e12, 179),
    "H200": GPU(989e12, 67e12, 140),
    "H100": GPU(989e12, 67e12, 80),
    "A100": GPU(312e12, 19.5e12, 80),
    "L40S": GPU(362e12, 91.6e12, 45),
    "L4": GPU(121e12, 30.3e12, 22),
    "A10": GPU(125e12, 31.2e12, 22),
    "V100": GPU(125e12, 15.7e12, 32, has_bfloat16=False),
    "T4": GPU(65e12, 8.1e12, 15, has_bfloat16=False),
    "RTX 4090": GPU(165e12, 82.6e12, 24),
    "RTX 3090": GPU(71e12, 35.6e12, 24),
}


def find_gpu(driver_name: str) -> GPU | None:
    """Return the GPU of a driver's name such as `NVIDIA A100-SXM4-80GB`; None if it is not known."""
    return next((gpu for key, gpu in GPUS.items() if re.search(rf"\b{key}\b", driver_name)), None)
