"""Operations on torch's DTensors. They also accept plain tensors.

Each device has one shard of a DTensor. On a mesh of two dimensions, tensor parallelism divides a tensor first, along
the last dimension of the mesh. Fully sharded data parallelism then divides each shard, along the first dimension.
"""

from typing import TYPE_CHECKING, Any, TypeGuard, cast

from torch import Tensor

# The import takes half a second, and generation does not need it. So the functions below import it when called.
if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_dtensor(value: Any) -> "TypeGuard[DTensor]":
    """Return whether a value is a DTensor."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def to_local(tensor: Tensor) -> Tensor:
    """Return this device's shard without copying it; a plain tensor is returned unchanged."""
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
    """Return the slices that select this device's shard from the whole tensor, for reading it from a file."""
    starts, sizes = [0] * tensor.ndim, list(tensor.shape)
    divisions: list[Any] = []
    if is_dtensor(tensor):
        mesh = tensor.device_mesh
        coordinate = cast(list[int], mesh.get_coordinate())
        divisions += zip(tensor.placements, coordinate, mesh.shape, strict=True)
    for placement, index, count in reversed(divisions):
        if not placement.is_replicate():
            axis = placement.dim
            share = -(-sizes[axis] // count)  # as torch.chunk does: the last ones may be smaller
            before = min(index * share, sizes[axis])
            starts[axis] += before
            sizes[axis] = min(share, sizes[axis] - before)
    return tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))


def from_local(shard: Tensor, like: Tensor) -> Tensor:
    """Return the DTensor of which each device passes its shard, divided as `like` is."""
    if not is_dtensor(like):
        return shard
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
