"""Clipping of sharded gradients equals that of whole ones."""

import math

import pytest
import torch
from ranks import on_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from llm import distributed
from llm.dtensor import to_full
from llm.optim.clipping import clip_gradients

SHAPES = [(7, 3), (4, 6), (5,), (3, 2), (6, 4)]


def parameters() -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=draw)
    return made


def clipped(limit: float) -> tuple[float, list[list[float]]]:
    """Return the norm and the gradients of the same parameters, sharded in different ways."""
    distributed.join_ranks("cpu")
    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    ways = [(line, [Shard(0)]), (square, [Shard(0), Shard(1)]), None]
    ways += [(line, [Replicate()]), (square, [Shard(0), Replicate()])]
    given = []
    for parameter, way in zip(parameters(), ways, strict=True):
        if way is not None:
            gradient = distribute_tensor(parameter.grad, *way)
            parameter = nn.Parameter(distribute_tensor(parameter.data, *way))
            parameter.grad = gradient
        given.append(parameter)
    given[3].grad = DTensor.from_local(given[3].grad.to_local() / 4, line, [Partial()])
    norm = clip_gradients(given, limit)
    return norm.item(), [to_full(parameter.grad).flatten().tolist() for parameter in given]


@pytest.mark.parametrize("limit", [0.5, math.inf])
def test_plain_tensors_are_clipped_as_torch_does(limit):
    own, theirs = parameters(), parameters()
    assert torch.equal(clip_gradients(own, limit), nn.utils.clip_grad_norm_(theirs, limit))
    for one, other in zip(own, theirs, strict=True):
        assert torch.equal(one.grad, other.grad)


def test_shards_on_several_meshes_are_clipped_as_one_vector():
    expected = parameters()
    norm = nn.utils.clip_grad_norm_(expected, 0.5)
    for found, gradients in on_ranks(4, clipped, 0.5):
        assert found == pytest.approx(norm.item(), rel=1e-6)
        for gradient, parameter in zip(gradients, expected, strict=True):
            assert gradient == pytest.approx(parameter.grad.flatten().tolist(), rel=1e-5, abs=1e-7)


def stages() -> float:
    """Return the norm if each rank has only one of the parameters, and the last rank has no gradient."""
    distributed.join_ranks("cpu")
    rank = distributed.world().rank
    mine = parameters()[rank : rank + 1] if rank < 2 else [nn.Parameter(torch.zeros(2))]
    return clip_gradients(mine, 1.0, others=torch.distributed.group.WORLD).item()


def test_ranks_with_different_parameters_share_a_norm():
    expected = nn.utils.get_total_norm([p.grad for p in parameters()[:2]]).item()
    assert on_ranks(3, stages) == pytest.approx([expected] * 3)


def test_parameters_without_gradients_have_norm_0():
    assert clip_gradients([nn.Parameter(torch.zeros(2))], 1.0) == 0
