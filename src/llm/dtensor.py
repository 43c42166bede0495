"""Tensors of which each device has a part: torch's DTensor, beside plain tensors, which each has whole.

What goes element by element needs a device's own part alone (`own`); what needs the whole gathers it
(`whole`); and what is read from a file needs to know which part is one's own (`place`).

A DTensor over a mesh of two dimensions is one that tensor parallelism divided along the last, and fully
sharded data parallelism then along the first: it was cut from right to left.
"""

from typing import TYPE_CHECKING, Any, TypeGuard, cast

from torch import Tensor

if TYPE_CHECKING:  # half a second to import, for those who never divide anything
    from torch.distributed.tensor import DTensor


def is_dtensor(value: Any) -> "TypeGuard[DTensor]":
    """Whether this is a DTensor."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def to_local(tensor: Tensor) -> Tensor:
    """This device's part: the memory itself, no copy. All of a plain tensor."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def to_full(tensor: Tensor) -> Tensor:
    """The whole, on every device; all that have parts must ask for it."""
    if not is_dtensor(tensor):
        return tensor
    from torch.distributed.tensor import Replicate

    placements = list(tensor.placements)
    for dimension in range(len(placements)):  # what was cut last is joined first
        placements[dimension] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    return tensor.to_local()


def local_slices(tensor: Tensor) -> tuple[slice, ...]:
    """Where in the whole this device's part lies: a slice of each dimension, empty where it has nothing."""
    starts, sizes = [0] * tensor.ndim, list(tensor.shape)
    for axis, index, count in _cuts(tensor):
        share = -(-sizes[axis] // count)  # as torch.chunk does: the last ones may have less
        before = min(index * share, sizes[axis])
        starts[axis] += before
        sizes[axis] = min(share, sizes[axis] - before)
    return tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))


def _cuts(tensor: Tensor) -> list[tuple[int, int, int]]:
    """In the order in which it was cut: along which axis, which piece this device has, of how many."""
    if not is_dtensor(tensor):
        return []
    mesh = tensor.device_mesh
    pieces = zip(cast(list[int], mesh.get_coordinate()), mesh.shape, tensor.placements, strict=True)
    cuts = [(cast(Any, p).dim, index, count) for index, count, p in pieces if not p.is_replicate()]
    return cuts[::-1]


def from_local(part: Tensor, like: Tensor) -> Tensor:
    """This device's part as one of a tensor that is divided as `like` is."""
    if not is_dtensor(like):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
