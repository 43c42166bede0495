"""Windows of a token file, gathered one batch at a time."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

from llm.data.corpora.token_file import TokenFile
from llm.nn.ignore_index import IGNORE_INDEX

Batch = dict[str, Tensor]


@dataclass(eq=False)
class TrainingWindows(Dataset[Batch]):
    """The sliding windows of training; the target of each token is the next one."""

    file: TokenFile
    context_length: int
    stride: int

    def __len__(self) -> int:
        return max(0, (len(self.file) - self.context_length - 1) // self.stride + 1)

    def __getitem__(self, windows: np.ndarray) -> Batch:
        """Gather a batch.

        Args:
            windows: (B) indices of windows.

        Returns:
            `tokens` and `targets`, (B, T) int64 each.
        """
        starts = windows * self.stride
        views = np.lib.stride_tricks.sliding_window_view(self.file.tokens, self.context_length + 1)
        return shift(torch.from_numpy(views[starts].astype(np.int64)))


@dataclass(eq=False)
class ValidationWindows(Dataset[Batch]):
    """The adjacent windows of validation: each token but the first is a target exactly once.

    The last window is padded with ignored targets. All targets of windows beyond it are ignored.
    """

    file: TokenFile
    context_length: int

    def __len__(self) -> int:
        return -(-(len(self.file) - 1) // self.context_length)

    def __getitem__(self, windows: np.ndarray) -> Batch:
        """Gather a batch, as TrainingWindows does."""
        positions = windows[:, None] * self.context_length + np.arange(self.context_length + 1)
        within = np.minimum(positions, len(self.file) - 1)
        batch = shift(torch.from_numpy(self.file.tokens[within].astype(np.int64)))
        # Not in place: in a batch of one window, tokens and targets are views of the same memory.
        beyond = torch.from_numpy(positions[:, 1:] >= len(self.file))
        return batch | {"targets": batch["targets"].masked_fill(beyond, IGNORE_INDEX)}


def shift(windows: Int64[Tensor, "B _"]) -> Batch:
    """Split windows of T + 1 tokens into inputs and targets of T tokens."""
    return {"tokens": windows[:, :-1].contiguous(), "targets": windows[:, 1:].contiguous()}
