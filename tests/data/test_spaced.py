import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from llm.data.spaced import SpacedRows


class Numbers(Dataset[dict[str, Tensor]]):
    """A dataset of ten rows, each its own number; indices beyond the end give -1, a filler."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, numbers: np.ndarray) -> dict[str, Tensor]:
        return {"row": torch.from_numpy(np.where(numbers < 10, numbers, -1))}


def test_a_subset_of_rows_is_spread_over_the_part():
    some = SpacedRows(Numbers(), 4)
    assert len(some) == 4
    assert some[np.arange(4)]["row"].tolist() == [0, 2, 5, 7]
    assert some[np.array([4, 9])]["row"].tolist() == [-1, -1], "beyond its end there is nothing"
