"""The base of adapters: finetuning with few trainable parameters.

An adapter freezes a model and adds or unfreezes few parameters. Frozen parameters (`requires_grad` is false) have no
gradient and no optimizer state, and a checkpoint of the adapter leaves them out.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from llm.nn.recurrent_cell import RecurrentCell
from llm.nn.stacked_linear import StackedLinear


class Adapter(ABC):
    """A choice of the trainable parameters; all others are frozen.

    Args:
        frozen_dtype: `bfloat16` halves the memory of the frozen matrices (`store`); None leaves them unchanged.
    """

    def __init__(self, frozen_dtype: Literal["bfloat16"] | None = None) -> None:
        self.frozen_dtype = frozen_dtype

    def apply(self, model: nn.Module, new: Collection[str] = ()) -> None:
        """Adapt a model in place, once it has its weights.

        Args:
            model: the base model.
            new: names of further trainable parameters: new ones, such as those of a classification head.

        Raises:
            ValueError: the model lacks such parameters, or the modules that this adapter needs.
        """
        freeze(model, new)
        self.adapt(model)
        if self.frozen_dtype is not None:
            store(model, getattr(torch, self.frozen_dtype))

    @abstractmethod
    def adapt(self, model: nn.Module) -> None:
        """Add or unfreeze the trainable parameters of a frozen model."""


class Adapted(nn.Module):
    """A module of the base model with an addition that can be switched off (`enabled`)."""

    enabled = True


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Disable everything that adapters added, within a context; unfrozen parameters keep their trained values.

    Raises:
        ValueError: nothing was added, so there is no base model to return to.
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
    """Freeze every parameter except those in `new`; a tied parameter may have any of its names.

    Raises:
        ValueError: a name is not a parameter's.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    if unknown := set(new) - named.keys():
        raise ValueError(
            f"new: {type(model).__name__} has no parameter {', '.join(sorted(unknown))}; use names of its parameters"
        )
    model.requires_grad_(requires_grad=False)
    for name in new:
        named[name].requires_grad_()


def store(model: nn.Module, dtype: torch.dtype) -> None:
    """Store frozen linear layers, experts, cells and embeddings in `dtype`; everything else stays in float32.

    Under autocast to `dtype` the results of a linear layer are bit-identical, because autocast rounds its weights too.
    Without autocast it rounds its input and returns float32. Embeddings return float32, as does the residual stream.
    """
    casts = (StackedLinear, RecurrentCell, ParametrizationList)  # they need no hooks
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        is_stored = isinstance(module, (nn.Linear, nn.Embedding, *casts))
        if not is_stored or any(p.requires_grad for p in own):
            continue
        for parameter in own:
            parameter.data = parameter.data.to(dtype)
        if isinstance(module, casts):
            continue
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(_round_input)
        module.register_forward_hook(_widen_output)


def _round_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *rest = args
    return x.to(module.weight.dtype), *rest


def _widen_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    # Under autocast linear layers return its dtype.
    autocast = isinstance(module, nn.Linear) and torch.is_autocast_enabled(output.device.type)
    return output if autocast else output.float()


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters by name: the content of an adapter's checkpoint."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
