"""Operations on torch's DTensors, of which each device has a shard, that also accept plain tensors.

`to_local` gives a device's own shard, for elementwise work; `to_full` gathers the whole; `local_slices` says which part
of the whole the shard is, for reading it from a file.

A DTensor on a mesh of two dimensions was divided by tensor parallelism along the last dimension first, then by fully
sharded data parallelism along the first.
"""

from typing import TYPE_CHECKING, Any, TypeGuard, cast

from torch import Tensor

if TYPE_CHECKING:  # takes half a second to import, which generation does not need; so also below
    from torch.distributed.tensor import DTensor


def is_dtensor(value: Any) -> "TypeGuard[DTensor]":
    """Return whether a value is a DTensor."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def to_local(tensor: Tensor) -> Tensor:
    """Return this device's shard without copying it, or a plain tensor itself."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def to_full(tensor: Tensor) -> Tensor:
    """Return the whole tensor on every device. All devices of its mesh must call this."""
    if not is_dtensor(tensor):
        return tensor
    from torch.distributed.tensor import Replicate

    placements = list(tensor.placements)
    for dimension in range(len(placements)):  # undo the last division first
        placements[dimension] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    return tensor.to_local()


def local_slices(tensor: Tensor) -> tuple[slice, ...]:
    """Return the slices of the whole that this device's shard is; empty ones if it has nothing."""
    starts, sizes = [0] * tensor.ndim, list(tensor.shape)
    for axis, index, count in _divisions(tensor):
        share = -(-sizes[axis] // count)  # as torch.chunk does: the last ones may be smaller
        before = min(index * share, sizes[axis])
        starts[axis] += before
        sizes[axis] = min(share, sizes[axis] - before)
    return tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))


def _divisions(tensor: Tensor) -> list[tuple[int, int, int]]:
    """Return for each division, in order: the axis, the number of this device's part, and the number of parts."""
    if not is_dtensor(tensor):
        return []
    mesh = tensor.device_mesh
    parts = zip(cast(list[int], mesh.get_coordinate()), mesh.shape, tensor.placements, strict=True)
    divisions = [
        (cast(Any, p).dim, index, count) for index, count, p in parts if not p.is_replicate()
    ]
    return divisions[::-1]


def from_local(shard: Tensor, like: Tensor) -> Tensor:
    """Return the tensor of which this is the local shard, divided like another one."""
    if not is_dtensor(like):
        return shard
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
