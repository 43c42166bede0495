"""Evenly spaced rows of a part: the subset that validations during training read of a large one."""

from collections.abc import Sized
from typing import cast

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset


class SpacedRows(Dataset[dict[str, Tensor]]):
    """A fixed number of evenly spaced rows, always the same ones.

    Args:
        rows: the whole part; its items are batches, `rows[indices]`. Targets of indices beyond the end are ignored.
        number: number of rows to take, at most all of them.
    """

    def __init__(self, rows: Dataset, number: int) -> None:
        self.rows, self.number = rows, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, numbers: np.ndarray) -> dict[str, Tensor]:
        """Gather the rows with these indices, (B); targets of indices beyond the end are ignored."""
        whole = len(cast(Sized, self.rows))
        return self.rows[np.where(numbers < self.number, numbers * whole // self.number, whole)]
