"""Windows over a token file, gathered a whole batch at a time."""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

from llm.data.corpora.token_file import TokenFile
from llm.nn.ignore_index import IGNORE_INDEX

Batch = dict[str, Tensor]


def count_windows(tokens: int, context_length: int, *, stride: int) -> int:
    """How many windows of context_length tokens, each with its next token, start every stride."""
    return max(0, (tokens - context_length - 1) // stride + 1)


class TrainingWindows(Dataset[Batch]):
    """Sliding windows; targets are the tokens one place further on."""

    def __init__(self, file: TokenFile, context_length: int, *, stride: int) -> None:
        self.file, self.context_length, self.stride = file, context_length, stride

    def __len__(self) -> int:
        return count_windows(len(self.file), self.context_length, stride=self.stride)

    def __getitem__(self, windows: np.ndarray) -> Batch:
        """Gather a batch.

        Args:
            windows: (B) window numbers.

        Returns:
            `tokens` and `targets`, (B, T) int64 each.
        """
        starts = windows * self.stride
        views = np.lib.stride_tricks.sliding_window_view(self.file.tokens, self.context_length + 1)
        return shifted(torch.from_numpy(views[starts].astype(np.int64)))


class ValidationWindows(Dataset[Batch]):
    """The whole part, side by side and once: each token but the first is a target exactly once.

    The last window is filled up with targets that count for nothing, and so is every window beyond
    it, which is how the devices of a parallel run come to equal numbers of batches.
    """

    def __init__(self, file: TokenFile, context_length: int) -> None:
        self.file, self.context_length = file, context_length

    def __len__(self) -> int:
        return -(-(len(self.file) - 1) // self.context_length)

    def __getitem__(self, windows: np.ndarray) -> Batch:
        """Gather a batch, as TrainingWindows does."""
        positions = windows[:, None] * self.context_length + np.arange(self.context_length + 1)
        within = np.minimum(positions, len(self.file) - 1)
        batch = shifted(torch.from_numpy(self.file.tokens[within].astype(np.int64)))
        # Not in place: of a batch of one window, tokens and targets are views of the same memory.
        beyond = torch.from_numpy(positions[:, 1:] >= len(self.file))
        return batch | {"targets": batch["targets"].masked_fill(beyond, IGNORE_INDEX)}


def shifted(windows: Int64[Tensor, "B _"]) -> Batch:
    """Part windows into what is read and what is to be predicted."""
    return {"tokens": windows[:, :-1].contiguous(), "targets": windows[:, 1:].contiguous()}
