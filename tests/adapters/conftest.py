"""Fixtures for the tests of all adapters."""

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two rows of twelve tokens."""
    return torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
    """randomize(model): change all trainable parameters at random, as training would."""

    def randomize(model: nn.Module) -> nn.Module:
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.1)
        return model

    return randomize


@pytest.fixture
def train() -> Callable[..., float]:
    """train(model, 1, 3, rate=…, steps=…): train with AdamW on rows that count by one or three; returns the loss."""

    def train(model: nn.Module, *strides: int, rate: float, steps: int, length: int = 12) -> float:
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=rate)
        loss = torch.tensor(torch.nan)
        for _ in range(steps):
            stride = torch.tensor(strides)[torch.randint(len(strides), (16, 1))]
            rows = (torch.randint(97, (16, 1)) + stride * torch.arange(length + 1)) % 97
            logits = model(rows[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    return train
