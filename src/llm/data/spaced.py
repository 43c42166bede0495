"""Some rows of a part, spread evenly over it: what validations during training read of a large one."""

from collections.abc import Sized
from typing import cast

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset


class SpacedRows(Dataset[dict[str, Tensor]]):
    """A fixed number of rows at equal distances, the same ones every time.

    Args:
        rows: The whole part; its items are batches, `rows[numbers]`, and numbers beyond its end ask for nothing.
        number: How many rows to take, at most as many as there are.
    """

    def __init__(self, rows: Dataset, number: int) -> None:
        self.rows, self.number = rows, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, numbers: np.ndarray) -> dict[str, Tensor]:
        """Gather the rows of these numbers, (B); numbers beyond the end ask for nothing."""
        whole = len(cast(Sized, self.rows))
        return self.rows[np.where(numbers < self.number, numbers * whole // self.number, whole)]
