"""Finetuning with few trainable parameters: what every way of doing so shares.

An adapter freezes the model it is applied to and adds, or thaws, the little that learns. A frozen
parameter has `requires_grad` false, and that is the whole record of it: it gets no gradient, parameter
groups leave it out, so it has no optimizer state, and a checkpoint of the adapter holds the rest.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn


class Adapter(ABC):
    """A choice of what learns in a model whose other parameters are frozen.

    Args:
        frozen_dtype: `bfloat16` stores the frozen matrices in half the memory; None leaves them as
            they are. See `store`.
    """

    def __init__(self, frozen_dtype: Literal["bfloat16"] | None = None) -> None:
        self.frozen_dtype = frozen_dtype

    def apply(self, model: nn.Module, new: Collection[str] = ()) -> None:
        """Adapts a model in place, once it has its weights.

        Args:
            model: the base.
            new: names of parameters that did not come with the weights, such as those of a fresh
                classification head; they learn as well.

        Raises:
            ValueError: the model has no such parameters, or not the parts that this adapter needs.
        """
        freeze(model, new)
        self.adapt(model)
        if self.frozen_dtype is not None:
            store(model, getattr(torch, self.frozen_dtype))

    @abstractmethod
    def adapt(self, model: nn.Module) -> None:
        """Adds or thaws, in a frozen model, what this adapter trains."""


class Adapted(nn.Module):
    """A part of the base with something added by an adapter; not `enabled`, it is the base's alone."""

    enabled = True


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The base model, for a while: everything that adapters added is off.

    Parameters that were thawed instead of added keep what they learned.

    Raises:
        ValueError: nothing was added, so that there is no base to go back to.
    """
    parts = [module for module in model.modules() if isinstance(module, Adapted)]
    if not parts:
        raise ValueError(
            f"{type(model).__name__} has no adapter to switch off: apply LoRA or a prefix, "
            "or keep a copy of the model"
        )
    before = [part.enabled for part in parts]
    try:
        for part in parts:
            part.enabled = False
        yield
    finally:
        for part, enabled in zip(parts, before, strict=True):
            part.enabled = enabled


def freeze(model: nn.Module, new: Collection[str] = ()) -> None:
    """Freezes every parameter but those named in `new`; a tied one goes by any of its names.

    Raises:
        ValueError: a name is no parameter's.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    if unknown := set(new) - named.keys():
        raise ValueError(f"new: {type(model).__name__} has no {', '.join(sorted(unknown))}")
    model.requires_grad_(requires_grad=False)
    for name in new:
        named[name].requires_grad_()


def store(model: nn.Module, dtype: torch.dtype) -> None:
    """Keeps frozen linear layers and embeddings in `dtype`; all else goes on in float32.

    Under autocast to `dtype` a linear layer computes as before, to the bit, for autocast would have
    rounded a copy of its weights; here there is no other copy. Without autocast it rounds its input,
    and hands on float32. The residual stream begins at an embedding and stays in float32.
    """
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if not isinstance(module, nn.Linear | nn.Embedding) or any(p.requires_grad for p in own):
            continue
        for parameter in own:
            parameter.data = parameter.data.to(dtype)
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(_round_input)
        module.register_forward_hook(_widen_output)


def _round_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *rest = args
    return x.to(module.weight.dtype), *rest


def _widen_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    # Between linear layers autocast passes its own dtype on, and is left to do so.
    autocast = isinstance(module, nn.Linear) and torch.is_autocast_enabled(output.device.type)
    return output if autocast else output.float()


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """All that learns in a model, by name: what a checkpoint of the adapter needs to hold."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fills all that learns in a model to which the same adapter was applied.

    Args:
        model: the base with its weights and the adapter.
        state: what `adapter_state` gave.

    Raises:
        ValueError: names all that is missing, left over or wrongly shaped; nothing is filled then.
    """
    own = adapter_state(model)
    problems = [f"missing: {name}" for name in own if name not in state]
    problems += [f"left over: {name}" for name in state if name not in own]
    problems += [
        f"wrong shape: {name} is {tuple(state[name].shape)}, the model's {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(f"the adapter does not fit, {len(problems)} problems:\n  {lines}")
    for name, tensor in own.items():
        tensor.copy_(state[name])
