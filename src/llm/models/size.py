"""The size of a model, independent of its architecture; its memory and operations."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import psutil
from torch import nn

from llm.config.errors import ConfigError
from llm.config.ranges import SIZES
from llm.nn.block import Block
from llm.nn.heads import group_size, head_width
from llm.nn.masks import Predicate, visible_keys
from llm.nn.mixture_of_experts import MixtureOfExperts


@dataclass(frozen=True)
class Size:
    """The sizes from which the configuration of every model is derived.

    Attributes:
        num_layers: number of blocks.
        num_heads: number of query heads.
        dim: width C of the model.
        context_length: tokens in a training example, and the most that attention covers.
        num_kv_heads: number of key and value heads, for grouped-query attention; None means `num_heads`.

    Raises:
        ValueError: a number is not positive, or the heads do not divide evenly.
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
    """Check sizes before any layer is built.

    Raises:
        ValueError: a size is not positive, or too large.
    """
    for name, size in sizes.items():
        if size not in SIZES[name]:
            raise ValueError(f"{name}={size} is out of range; give {SIZES[name]}")


def active_parameters(*parts: nn.Module) -> int:
    """Return the number of parameters that compute a token: of a mixture's experts, only those that the token chose.

    Args:
        parts: modules; a parameter that they share counts once in each.
    """
    count = sum(parameter.numel() for part in parts for parameter in part.parameters())
    modules = (module for part in parts for module in part.modules())
    return count - sum(m.idle_parameters for m in modules if isinstance(m, MixtureOfExperts))


def flops_per_token(
    blocks: nn.ModuleList, *others: nn.Module, context: int, mask: Predicate
) -> int:
    """Return the floating-point operations for one token of training, forward and backward.

    6N for the N active parameters of matrix products, and what each layer needs to mix the tokens of a context
    (Chowdhery et al. 2022, PaLM, appendix B).

    Args:
        blocks: the blocks.
        others: other modules with matrix products; embedding lookups multiply nothing.
        context: number T of tokens that attention covers.
        mask: the mask of blocks without one of their own.
    """
    multiplying = active_parameters(blocks, *others)
    # The last token sees the most. Like the paper, count as many keys for every other one.
    mixing = sum(
        block.attention.mixing_flops(visible_keys(block.mask or mask, context))
        for block in cast(Iterable[Block], blocks)
    )
    # 6 per parameter: one multiplication and one addition in the forward pass, twice that in the backward
    # pass (gradients of inputs and of weights).
    return 6 * multiplying + mixing


def require_memory(outline: nn.Module, vocab_size: int = 0) -> None:
    """Check, before a model is built, that its parameters fit into the memory of this machine.

    Args:
        outline: the model on `meta`.
        vocab_size: rows of its embedding and head, if the outline has fewer.

    Raises:
        ConfigError: they do not fit.
    """
    body = getattr(outline, "body", outline)
    parts = (getattr(body, name, None) for name in ("embedding", "head"))
    tables = {id(getattr(part, "weight", None)) for part in parts}
    count = size = 0
    for tensor in (*outline.parameters(), *outline.buffers()):  # a tied table comes once
        numbers = tensor.numel()
        if id(tensor) in tables:
            numbers = numbers // tensor.shape[0] * max(tensor.shape[0], vocab_size)
        count, size = count + numbers, size + numbers * tensor.element_size()
    memory = psutil.virtual_memory().total
    if size > memory:
        raise ConfigError(
            f"model: its {count:,} parameters take {size / 2**30:,.0f} GiB, more "
            f"than the {memory / 2**30:,.0f} GiB of this machine; choose a smaller size"
        )
