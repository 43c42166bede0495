"""The table of GPUs."""

import pytest

from llm.gpus import GPUS, find_gpu


@pytest.mark.parametrize(
    ("driver_name", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA H100 80GB HBM3", "H100"),
    ],
)
def test_gpu_is_found_by_the_name_its_driver_has(driver_name, key):
    assert find_gpu(driver_name) is GPUS[key]


def test_unknown_gpu_is_not_taken_for_one_with_a_similar_name():
    assert find_gpu("NVIDIA L400") is None
    assert find_gpu("NVIDIA A1000") is None


def test_matrix_products_in_float32_are_slower():
    assert all(gpu.float32_flops < gpu.bfloat16_flops for gpu in GPUS.values())
