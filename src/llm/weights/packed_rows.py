"""Tensors of the published files that contain several, whose rows alternate."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llm.checkpoints.lazy_tensor import LazyTensor


@dataclass(frozen=True)
class PackedRows:
    """A tensor whose rows are, for each group such as a head, those of the first part, then those of the second.

    Attributes:
        name: its name.
        groups: number of groups.
        rows: number of rows of each part in a group, by the part's name.
    """

    name: str
    groups: int
    rows: Mapping[str, int]

    @property
    def parts(self) -> tuple[str, ...]:
        """The names by which rules refer to the parts."""
        return tuple(f"{self.name}[{part}]" for part in self.rows)

    def at(self, layer: int) -> "PackedRows":
        """Return the tensor of one layer, whose number replaces `{}`."""
        return replace(self, name=self.name.replace("{}", str(layer)))

    def split(self, whole: Tensor) -> list[Tensor]:
        """Return the parts; each has the rows of all groups, in their order."""
        # (G · rows, …) -> (G, rows, …) -> (G, rows of a part, …) -> (G · rows of a part, …)
        grouped = whole.unflatten(0, (self.groups, sum(self.rows.values())))
        return [part.flatten(0, 1) for part in grouped.split([*self.rows.values()], dim=1)]

    def join(self, parts: list[Tensor]) -> Tensor:
        """Return the tensor with the rows of all parts."""
        grouped = [part.unflatten(0, (self.groups, -1)) for part in parts]
        return torch.cat(grouped, dim=1).flatten(0, 1)

    def unpack(self, stored: LazyTensor) -> dict[str, LazyTensor]:
        """Return the parts, unread; those of a tensor with other rows have its shape, which is then reported."""
        try:
            outlines = self.split(torch.empty(stored.shape, device="meta"))
        except RuntimeError:
            return dict.fromkeys(self.parts, stored)
        return {
            name: LazyTensor(
                stored.name, tuple(outline.shape), lambda n=n: self.split(stored.read())[n]
            )
            for n, (name, outline) in enumerate(zip(self.parts, outlines, strict=True))
        }
