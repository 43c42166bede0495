"""Products of groups of rows with a matrix for each group, without padding the groups to one size.

    rows      matrices        products
    x₀ ┐
    x₁ ┘ ·    W₀         =    x₀W₀, x₁W₀
    x₂   ·    W₁         =    x₂W₁

`F.grouped_mm` is one kernel for it. It takes rows of a multiple of 16 bytes in float32, bfloat16 and float16. Other
tensors are multiplied group by group. Both are operators of our own here, because the sizes of the groups depend on the
data: `torch.compile` and fake tensors know the shapes of the results and do not look inside.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# torch reads the types of an operator from these signatures, so they have no shapes.


@torch.library.custom_op("llm::grouped_product", mutates_args=())
def grouped_product(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Return the product of each group of rows with its matrix, (M, R).

    Args:
        rows: rows of all groups, (M, C), one group after the other.
        matrices: a matrix for each of E groups, (E, C, R).
        ends: index after the last row of each group, (E).
    """
    if _is_supported(rows, matrices.shape[-1]):
        return F.grouped_mm(rows, matrices, offs=ends.to(torch.int32))
    parts = _groups(rows, ends)
    return torch.cat([part @ matrix for part, matrix in zip(parts, matrices, strict=True)])


@torch.library.custom_op("llm::grouped_outer_product", mutates_args=())
def grouped_outer_product(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Return leftᵀ · right for each group of rows, (E, C, R).

    Args:
        left: rows of all groups, (M, C), one group after the other.
        right: rows of the same groups, (M, R).
        ends: index after the last row of each group, (E).
    """
    if _is_supported(left, right.shape[-1]):
        return F.grouped_mm(left.mT, right, offs=ends.to(torch.int32))
    pairs = zip(_groups(left, ends), _groups(right, ends), strict=True)
    return torch.stack([a.mT @ b for a, b in pairs])


def _is_supported(rows: Tensor, width: int) -> bool:
    """Return whether `F.grouped_mm` takes rows of this dtype and width, and gives rows of the other width."""
    bytes_of_rows = (rows.shape[-1] * rows.element_size(), width * rows.element_size())
    is_aligned = all(size % 16 == 0 for size in bytes_of_rows)
    return is_aligned and rows.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _groups(rows: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
    return rows.split([end - start for start, end in pairwise([0, *ends.tolist()])])


@grouped_product.register_fake
def _(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], matrices.shape[-1])


@grouped_outer_product.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[-1], right.shape[-1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    rows, matrices, ends = ctx.saved_tensors
    # Of a sum the gradient is one number, expanded without strides; the kernel needs rows in memory.
    gradient = gradient.contiguous()
    of_rows = grouped_product(gradient, matrices.mT, ends)
    return of_rows, grouped_outer_product(rows, gradient, ends), None


grouped_product.register_autograd(_backward, setup_context=_keep)
