"""A package of a user, with targets that are wrong in every way that the check reports."""

import sys

import pytest

KIT = """
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import Callback
from torch import nn

from llm.config.base import Command
from llm.config.deferred import Deferred
from llm.hardware import Hardware
from llm.training.config_rules import RULES


class Norm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim={dim} is odd:\\n  choose an even one")


class Plain(nn.Module):
    pass


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, norm: Callable[[int], nn.Module] | None = None,
                 kernel: nn.Module | None = None):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}: choose a divisor")


class Model(nn.Module):
    def __init__(self, vocab_size: int, dim: int, norm: Callable[[int], nn.Module],
                 attention: Callable[[int], nn.Module] | None = None,
                 final: nn.Module | None = None, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.norm = norm(dim)
        self.attention = attention(dim) if attention else None


@dataclass(frozen=True)
class Values:
    count: int = 1
    rate: float = 0.5
    flag: bool = False
    maybe: int | None = None
    mode: Literal["auto", 32] = "auto"
    pair: tuple[float, float] = (0.0, 0.0)
    words: Sequence[str] = ()
    table: Mapping[str, float] | None = None
    apply: Callable[[str], str] | None = None
    steps: Sequence[Callable[[str], str]] = ()

    def __post_init__(self):
        if self.count < 0:
            raise ValueError(f"count={self.count}: must not be negative")


def lower(text: str) -> str:
    return text.lower()


def cut(text: str, length: int) -> str:
    return text[:length]


def number() -> int:
    return 3


def anything(**kwargs: Any) -> int:
    return 3


def broken(dim: int) -> int:
    return dim + None


class Oops(Exception):
    pass


@dataclass(frozen=True, kw_only=True)
class Study(Command):
    seed: int = 0
    name: str | None = None
    output_dir: str = "outputs"
    max_tokens: int = 1
    mfu: float = 0.4
    model: Deferred[nn.Module] = None
    task: Deferred[Any] = None
    data: Any = None
    weights: Any = None
    optimizer: Any = None
    adapter: Any = None
    hardware: Hardware | None = None
    callbacks: Mapping[str, Callback | None] | None = None

    rules = RULES

    def run(self) -> None:
        pass
"""


@pytest.fixture(scope="session")
def kit(tmp_path_factory):
    """The name of an importable package with targets."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "kit.py").write_text(KIT)
    sys.path.insert(0, str(folder))
    yield "kit"
    sys.path.remove(str(folder))
