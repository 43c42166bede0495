"""Parameter groups: which weights decay, and which matrices Muon trains.

A group is that of a torch optimizer, `{"params": [...], ...}`, with two more keys: `name`, for logs, and
`hidden`, true for the matrices inside the blocks, except those of routers. The optimizer's weight decay applies to
groups without one.
"""

from typing import Any

from torch import nn


def decay_matrices(model: nn.Module) -> list[dict[str, Any]]:
    """Return groups that decay weights of two or more dimensions, but not vectors: biases and scales of norms.

    Decay would pull the scale of a norm away from 1 (GPT-2, GPT-3 and Llama were trained without it).

    Args:
        model: any module; frozen parameters are left out and tied ones counted once.

    Returns:
        The groups `hidden`, `embedding` (with the head), `convolution`, `router` (of experts) and `vector`, without
        empty ones.

    Raises:
        ValueError: no parameter is trainable.
    """
    groups = decay_everything(model)
    for group in groups:
        if group["name"] == "vector":
            group["weight_decay"] = 0.0
    return groups


def decay_everything(model: nn.Module) -> list[dict[str, Any]]:
    """Return the groups of `decay_matrices` without a weight decay of their own, so that all parameters decay.

    Argument and error are those of `decay_matrices`.
    """
    kinds = ("hidden", "embedding", "convolution", "router", "vector")
    members: dict[str, list[nn.Parameter]] = {kind: [] for kind in kinds}
    # named_parameters gives a tied parameter once, under its first name.
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[_kind(name, parameter)].append(parameter)
    groups = [
        {"params": parameters, "name": kind, "hidden": kind == "hidden"}
        for kind, parameters in members.items()
        if parameters
    ]
    if not groups:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameter; unfreeze some before training"
        )
    return groups


def _kind(name: str, parameter: nn.Parameter) -> str:
    words = name.split(".")
    if parameter.ndim < 2 or words[-1] == "bias":  # biases of a stack of layers have two dimensions
        return "vector"
    # A filter per channel is not a matrix that maps vectors to vectors, so Muon does not train it.
    if "convolution" in words:
        return "convolution"
    if "router" in words:  # its rows are scores of experts, not directions of a hidden state
        return "router"
    return "hidden" if "blocks" in words else "embedding"
