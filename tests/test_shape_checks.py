"""The run-time check of shapes that the tests run with reports wrong shapes and types."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from jaxtyping import Float
from shape_checks import checked
from torch import Tensor

from llm.nn.norms import RMSNorm
from llm.nn.residual import pre_norm

THREE, FOUR = torch.ones(3), torch.ones(4)


@checked
def add(a: Float[Tensor, " N"], b: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    return a + b


@checked
def drop(a: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    return a[1:]


@checked
def add_shorter(a: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    add(a[1:], a[1:])
    return a


def test_arguments_with_one_axis_must_agree_on_its_size():
    assert add(THREE, THREE).shape == (3,)
    with pytest.raises(TypeError):
        add(THREE, FOUR)


def test_a_result_must_have_the_annotated_shape():
    with pytest.raises(TypeError):
        drop(THREE)


def test_sizes_of_axes_are_local_to_a_call():
    assert add_shorter(FOUR) is FOUR
    assert add(THREE, THREE).shape == (3,), "sizes do not outlive their call"


def test_arrays_within_containers_are_checked():
    @checked
    def both(pair: tuple[Float[Tensor, " N"], Float[Tensor, " N"]] | None) -> None: ...

    both((THREE, THREE))
    both(None)
    with pytest.raises(TypeError):
        both((THREE, FOUR))


def test_plain_types_are_checked_and_an_int_passes_for_a_float():
    @checked
    def scale(factor: float) -> float:
        return factor

    assert scale(2) == 2
    with pytest.raises(TypeError):
        scale("2")  # pyright: ignore


def test_generators_and_undefined_names_are_not_checked():
    @checked
    def count(other: "Later") -> Iterator[int]:  # pyright: ignore
        yield other

    assert list(count(3)) == [3]


def test_constructors_of_dataclasses_are_checked():
    @checked
    @dataclass
    class Pair:
        a: Float[Tensor, " N"]
        b: Float[Tensor, " N"]

    Pair(THREE, THREE)
    with pytest.raises(TypeError):
        Pair(THREE, FOUR)


@pytest.mark.parametrize(
    "call", [lambda: RMSNorm(8)(torch.ones(2, 3, 8).long()), lambda: pre_norm(1, 2, 3)]
)
def test_the_package_is_checked(call: Any):
    with pytest.raises(TypeError):
        call()
