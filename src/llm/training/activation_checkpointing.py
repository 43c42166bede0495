"""Activation checkpointing, which saves memory by computing activations twice."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from llm.config.errors import ConfigError


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute each block in the backward pass instead of storing its activations (Chen et al. 2016)."""
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        raise ConfigError(
            f"hardware.activation_checkpointing: {type(model).__name__} has no attribute `blocks`; set it to false, "
            "or name the model's list of layers `blocks`"
        )
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
