"""Evenly spaced rows of a part, which a validation during training reads instead of all rows."""

from collections.abc import Sized
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch.utils.data import Dataset

from llm.data.corpora.windows import Batch


@dataclass(eq=False)
class SpacedRows(Dataset[Batch]):
    """A fixed number of evenly spaced rows, always the same ones.

    Args:
        rows: the whole part; its items are batches, `rows[indices]`.
        number: number of rows to take, at most all of them.
    """

    rows: Dataset
    number: int

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, numbers: np.ndarray) -> Batch:
        """Gather the rows with these indices, (B); targets of indices beyond the end are ignored."""
        whole = len(cast(Sized, self.rows))
        return self.rows[np.where(numbers < self.number, numbers * whole // self.number, whole)]
