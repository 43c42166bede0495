"""Low-rank updates of matrices, and what adapted layers share: updates by name, of which one is active."""

import math
from abc import abstractmethod
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from llm.adapters.base import Adapted


class LowRank(nn.Module):
    """The update x ↦ alpha/rank · dropout(x) Aᵀ Bᵀ of some rows of a matrix W.

    Args:
        weight: W, or a stack of matrices; A and B are on its device, in at least float32, one pair for each matrix.
        rows: the rows, each of which produces one output.
        rank: r, the rows of A and the columns of B.
        alpha: strength of the update, independent of the rank.
        dropout: probability for the inputs.
    """

    def __init__(
        self,
        weight: Float[Tensor, "*stack outputs inputs"],
        rows: slice,
        *,
        rank: int,
        alpha: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.rows = rows
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        *stack, _, inputs = weight.shape
        down = torch.empty(*stack, rank, inputs, dtype=dtype, device=weight.device)
        for matrix in down.view(-1, rank, inputs):
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
        self.down = nn.Parameter(down)  # A
        self.up = nn.Parameter(down.new_zeros(*stack, rows.stop - rows.start, rank))  # B

    def forward(self, x: Float[Tensor, "*B inputs"]) -> Float[Tensor, "*B rows"]:
        """Return the change of these rows' outputs."""
        down, up = (matrix.to(x.dtype) for matrix in (self.down, self.up))
        return self.scale * F.linear(F.linear(self.dropout(x), down), up)

    def delta(self) -> Float[Tensor, "*stack rows inputs"]:
        """Return ΔW, the change of the rows."""
        return self.scale * self.up @ self.down


class LoRALayer(Adapted):
    """A matrix, or a stack of matrices, with low-rank updates.

    Attributes:
        kind: the class of its updates.
        lora: the updates by adapter name and by section of the layer.
        active: the adapter whose updates are applied.
    """

    kind: ClassVar[type[LowRank]] = LowRank

    def __init__(self) -> None:
        super().__init__()
        self.lora = nn.ModuleDict()
        self.active: str | None = None

    def add(self, name: str, part: str, update: LowRank) -> None:
        """Add an adapter's update of a section."""
        if name not in self.lora:
            self.lora[name] = nn.ModuleDict()
        cast(nn.ModuleDict, self.lora[name])[part] = update

    def updates(self) -> list[Any]:
        """Return the active updates."""
        if not self.enabled or self.active is None:
            return []
        return list(cast(nn.ModuleDict, self.lora[self.active]).values())  # pyright: ignore

    @abstractmethod
    def merge(self, model: nn.Module, name: str) -> None:
        """Replace this module of a model by what it adapts, with the active updates added to the matrices."""

    def added(self, weight: Float[Tensor, "*stack outputs inputs"]) -> Tensor:
        """Return a matrix with the active updates, in the dtype of the updates; without any, the matrix itself."""
        updates = self.updates()
        if not updates:
            return weight
        total = weight.to(updates[0].down.dtype, copy=True)
        for update in updates:
            total[..., update.rows, :] += update.delta()
        return total
