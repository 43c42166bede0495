"""How large a model is, apart from what it is made of; and whether this machine can hold it."""

from dataclasses import dataclass

import psutil
import torch
from omegaconf import DictConfig

from llm.config.build import build
from llm.config.errors import ConfigError
from llm.config.ranges import SIZES
from llm.nn.heads import group_size, head_width


@dataclass(frozen=True)
class Size:
    """The numbers that models of any kind take their own from.

    Attributes:
        num_layers: number of blocks.
        num_heads: number of query heads.
        dim: width C of the model.
        context_length: tokens that a training example holds, and the most that are attended to.
        num_kv_heads: number of key and value heads, where attention groups them; None means all.

    Raises:
        ValueError: a number is not positive, or the heads do not divide what they share.
    """

    num_layers: int
    num_heads: int
    dim: int
    context_length: int
    num_kv_heads: int | None = None

    def __post_init__(self) -> None:
        require_sizes(num_layers=self.num_layers, context_length=self.context_length, dim=self.dim)
        head_width(self.dim, self.num_heads)
        if self.num_kv_heads is not None:
            group_size(self.num_heads, self.num_kv_heads)


def require_sizes(**sizes: int) -> None:
    """Let pass sizes that a model can have, before a part is made for each.

    Raises:
        ValueError: one is not positive, or beyond all reason.
    """
    for name, size in sizes.items():
        if size not in SIZES[name]:
            raise ValueError(f"{name}={size} is out of range; give {SIZES[name]}")


def require_memory(model: DictConfig) -> None:
    """Let pass the node of a model whose parameters fit into the memory of this machine, before it is built.

    Raises:
        ConfigError: they do not.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        outline = build(model)
    parameters = {id(each): each for each in (*outline.parameters(), *outline.buffers())}.values()
    needed, memory = sum(each.nbytes for each in parameters), psutil.virtual_memory().total
    if needed > memory:
        raise ConfigError(
            f"model: its {sum(each.numel() for each in parameters):,} parameters take {needed / 2**30:,.0f} GiB, more "
            f"than the {memory / 2**30:,.0f} GiB of this machine; choose a smaller size"
        )
