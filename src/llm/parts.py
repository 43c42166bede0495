"""Tensors of which each device has a part: torch's DTensor, beside plain tensors, which each has whole.

What goes element by element needs a device's own part alone (`own`); what needs the whole gathers it
(`whole`); and what is read from a file needs to know which part is one's own (`place`).

A DTensor over a mesh of several dimensions is one that tensor parallelism divided along the last, and
fully sharded data parallelism then along the first: it was cut from right to left.
"""

from typing import Any, cast

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate


def own(tensor: Tensor) -> Tensor:
    """This device's part: the memory itself, no copy. All of a plain tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole, on every device; all that have parts must ask for it."""
    if not isinstance(tensor, DTensor):
        return tensor
    placements = list(tensor.placements)
    for dimension in range(len(placements)):  # what was cut last is joined first
        placements[dimension] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    return tensor.to_local()


def place(tensor: Tensor) -> tuple[slice, ...]:
    """Where in the whole this device's part lies: a slice of each dimension, empty where it has nothing."""
    if not isinstance(tensor, DTensor):
        return tuple(slice(0, size) for size in tensor.shape)
    starts, sizes = [0] * tensor.ndim, list(tensor.shape)
    mesh = tensor.device_mesh
    coordinates = cast(list[int], mesh.get_coordinate())
    for count, index, placement in zip(
        reversed(mesh.shape), reversed(coordinates), reversed(tensor.placements), strict=True
    ):
        if not placement.is_replicate():
            axis = cast(Any, placement).dim
            share = -(-sizes[axis] // count)  # as torch.chunk does: the last ones may have less
            before = min(index * share, sizes[axis])
            starts[axis] += before
            sizes[axis] = min(share, sizes[axis] - before)
    return tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))


def join(part: Tensor, like: Tensor) -> Tensor:
    """This device's part as one of a tensor that is divided as `like` is."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
