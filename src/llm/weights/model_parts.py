"""Reading of the parts of a model of ours, to describe it in config.json."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import nn

from llm.models.gpt import GPT
from llm.nn.block import Block
from llm.nn.masks import Predicate, SlidingWindow
from llm.nn.mixture_of_experts import MixtureOfExperts
from llm.nn.positions import Position

Module = TypeVar("Module", bound=nn.Module)


class NoCounterpartError(Exception):
    """A family has no part of this class, so a model of it cannot be described.

    Args:
        key: key of the part in the configuration.
        found: the part.
    """

    def __init__(self, key: str, found: object) -> None:
        super().__init__(f"{key}: {name_of(found)}")
        self.key = key
        self.found = found


def part_of(model: nn.Module, kind: type[Module], *, key: str, found: object = None) -> Module:
    """Return the first module of a class, or of a subclass.

    Args:
        model: the model, or a part of it.
        kind: the class.
        key: key of the part in the configuration.
        found: what the model has in its place; None means the model itself.

    Raises:
        NoCounterpartError: there is none.
    """
    for module in model.modules():
        if isinstance(module, kind):
            return module
    raise NoCounterpartError(key, model if found is None else found)


def blocks_of(model: GPT) -> list[Block]:
    """Return the layers."""
    return [*model.blocks]  # pyright: ignore[reportReturnType]


def position_of(model: GPT, block: Block) -> Position:
    """Return the position encoding of a layer: its own, or that of the model."""
    return model.position if block.position is None else block.position


def mask_of(model: GPT, block: Block) -> Predicate:
    """Return the mask of a layer: its own, or that of the model."""
    return model.mask if block.mask is None else block.mask


def window_of(model: GPT, block: Block) -> int | None:
    """Return the number of keys that a query of a layer attends to; None for all, or for another mask."""
    mask = mask_of(model, block)
    return mask.size if isinstance(mask, SlidingWindow) else None


def hidden_dim_of(feed_forward: nn.Module | None) -> int:
    """Return the width of a feed-forward layer, or that of one expert.

    Raises:
        NoCounterpartError: it has no hidden layer.
    """
    inner: Any = feed_forward
    inner = inner.experts if isinstance(feed_forward, MixtureOfExperts) else inner
    if not hasattr(inner, "output"):
        raise NoCounterpartError("model.feed_forward", feed_forward)
    return inner.output.weight.shape[-1]


def activation_name(feed_forward: nn.Module | None, names: Mapping[str, Callable[..., Any]]) -> str:
    """Return the name of a feed-forward layer's activation.

    Args:
        feed_forward: the layer.
        names: activations by name.

    Raises:
        NoCounterpartError: the activation has no name.
    """
    inner: Any = feed_forward
    inner = inner.experts if isinstance(feed_forward, MixtureOfExperts) else inner
    function = unwrap_partial(getattr(inner, "activation", None))
    return first_name(names, function, key="model.feed_forward.activation")


def softcap_of(kernel: Any) -> float | None:
    """Return the bound of the scores, the only property of a kernel that changes the result."""
    return getattr(kernel, "keywords", {}).get("softcap", getattr(kernel, "softcap", None))


def first_name(names: Mapping[str, Any], value: Any, *, key: str) -> str:
    """Return the first name of a value.

    Raises:
        NoCounterpartError: it has none.
    """
    for name, known in names.items():
        if known is value:
            return name
    raise NoCounterpartError(key, value)


def has_biases(module: nn.Module) -> bool:
    """Return whether a module has a bias."""
    return any(name.endswith("bias") for name, _ in module.named_parameters())


def unwrap_partial(function: Any) -> Any:
    """Return the function inside a partial, or the function itself."""
    return getattr(function, "func", function)


def name_of(part: object) -> str:
    """Return how a message names a part: a number as it is, otherwise the name of a function or class."""
    if isinstance(part, bool | int | float | str | Iterable) or part is None:
        return str(part)
    name = getattr(unwrap_partial(part), "__qualname__", type(part).__qualname__)
    return name.partition(".<locals>")[0]  # of a function that another one made


def dtype_of(model: nn.Module) -> str:
    """Return the dtype of a model's parameters, such as `float32`."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")
