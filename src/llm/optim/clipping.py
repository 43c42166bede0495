"""Clipping to a global norm, for plain and sharded gradients (Pascanu et al. 2013)."""

# pyright: reportPrivateImportUsage=false
# The _foreach operations, one launch for a whole list, are private in name only.

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, Replicate

from llm.dtensor import is_dtensor, to_local

# Process groups whose devices have shards of a tensor, one for each mesh dimension that it is sharded over.
Owners = tuple[distributed.ProcessGroup, ...]


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[Tensor],
    limit: float,
    *,
    others: distributed.ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """Scale all gradients down if their joint norm exceeds `limit`.

    Unlike in torch's own function, a parameter may be a plain tensor, which every device has, or a DTensor
    over any mesh. The squares of shards are summed over their devices, and replicated gradients count once.

    Args:
        parameters: parameters; those without a gradient are skipped.
        limit: the norm to clip to; infinity only measures.
        others: ranks with other parameters of the same model, such as pipeline stages, which count too.

    Returns:
        The norm before clipping, on every device; 0 if there is no gradient.
    """
    parts: dict[Owners, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        gradient = parameter.grad
        if is_dtensor(gradient):
            gradient = parameter.grad = _add_partial_sums(gradient)
            parts[_owners(gradient)].append(to_local(gradient))
        elif gradient is not None:
            parts[()].append(gradient)
    norms = [_norm(gradients, owners) for owners, gradients in parts.items()] or [torch.zeros(())]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if others is not None:
        norm = _join(norm, others)
    if math.isinf(limit):
        return norm
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradients in parts.values():
        torch._foreach_mul_(gradients, scale.to(gradients[0].device))
    return norm


def _add_partial_sums(gradient: DTensor) -> DTensor:
    """Return the gradient with the partial sums of its devices added."""
    if not any(p.is_partial() for p in gradient.placements):
        return gradient
    whole = [Replicate() if p.is_partial() else p for p in gradient.placements]
    return gradient.redistribute(placements=whole)


def _owners(gradient: DTensor) -> Owners:
    mesh, placements = gradient.device_mesh, gradient.placements
    return tuple(mesh.get_group(i) for i, p in enumerate(placements) if not p.is_replicate())


def _norm(gradients: list[Tensor], owners: Owners) -> Tensor:
    norm = nn.utils.get_total_norm(gradients)
    for group in owners:
        norm = _join(norm, group)
    return norm


def _join(norm: Tensor, group: distributed.ProcessGroup) -> Tensor:
    """Return the joint norm over the devices of a group."""
    square = norm.square()
    distributed.all_reduce(square, group=group)
    return square.sqrt()
