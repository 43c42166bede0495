"""Activation checkpointing: less memory, more time."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute each block in the backward pass instead of storing its activations (Chen et al. 2016)."""
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        raise ValueError(
            f"activation checkpointing needs blocks, and {type(model).__name__} has none"
        )
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
