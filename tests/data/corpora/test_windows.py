from pathlib import Path

import numpy as np
import pytest
import torch

from llm.data.corpora.token_file import TokenFile
from llm.data.corpora.windows import TrainingWindows, ValidationWindows
from llm.nn.ignore_index import IGNORE_INDEX


def token_file(folder: Path, number: int) -> TokenFile:
    tokens = np.random.default_rng(0).integers(0, 60_000, number).astype(np.uint16)
    tokens.tofile(folder / "tokens.bin")
    return TokenFile(folder / "tokens.bin", tokens.dtype)


@pytest.mark.parametrize("stride", [1, 3, 8, 11])
def test_training_windows_are_those_of_a_plain_loop(tmp_path: Path, stride: int):
    file = token_file(tmp_path, 100)
    windows = TrainingWindows(file, context_length=8, stride=stride)
    tokens = torch.from_numpy(file.tokens.astype(np.int64))
    starts = range(0, len(tokens) - 8, stride)
    assert len(windows) == len(starts)
    batch = windows[np.arange(len(windows))[::-1]]
    assert batch["tokens"].dtype == batch["targets"].dtype == torch.int64
    assert torch.equal(batch["tokens"], torch.stack([tokens[s : s + 8] for s in starts][::-1]))
    assert torch.equal(batch["targets"], torch.stack([tokens[s + 1 : s + 9] for s in starts][::-1]))
    assert batch["tokens"].is_contiguous()
    assert batch["targets"].is_contiguous()


@pytest.mark.parametrize("number", [0, 1, 8, 9, 10, 17, 18])
def test_the_number_of_windows_at_the_edge(tmp_path: Path, number: int, monkeypatch):
    monkeypatch.setattr(TokenFile, "__len__", lambda file: number)  # an empty file cannot be mapped
    windows = TrainingWindows(token_file(tmp_path, 1), context_length=8, stride=8)
    assert len(windows) == len(range(0, number - 8, 8))


@pytest.mark.parametrize("number", [2, 8, 9, 10, 16, 17, 18, 100])
def test_validation_asks_for_every_token_but_the_first_exactly_once(tmp_path: Path, number: int):
    file = token_file(tmp_path, number)
    windows = ValidationWindows(file, context_length=8)
    batch = windows[np.arange(len(windows))]
    tokens = torch.from_numpy(file.tokens.astype(np.int64))
    asked = batch["targets"] != IGNORE_INDEX
    assert torch.equal(batch["targets"][asked], tokens[1:])
    assert torch.equal(batch["tokens"][asked], tokens[:-1])
    assert batch["tokens"].shape == (len(windows), 8)
    assert asked.any(dim=1).all(), "no window is all padding"


def test_the_last_window_alone_in_its_batch_keeps_its_tokens(tmp_path: Path):
    """In a batch of one, tokens and targets may share memory, so ignoring a target must not change a token."""
    file = token_file(tmp_path, 12)
    batch = ValidationWindows(file, context_length=8)[np.array([1])]
    assert (batch["targets"] == IGNORE_INDEX).sum() == 5
    assert batch["tokens"].min() >= 0


def test_windows_beyond_the_end_ask_for_nothing(tmp_path: Path):
    windows = ValidationWindows(token_file(tmp_path, 17), context_length=8)
    batch = windows[np.array([len(windows), len(windows) + 1])]
    assert (batch["targets"] == IGNORE_INDEX).all()
    assert batch["tokens"].shape == (2, 8)
