"""A model is filled from stored tensors: strictly, in place, one tensor at a time."""

from collections.abc import Container, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from llm.config.errors import ConfigError
from llm.weights.stored import Shape, Stored

# Tables with a row a token: these grow when tokens are added.
TABLES = ("embedding.weight", "head.weight")


@torch.no_grad()
def fill(
    model: nn.Module, tensors: Mapping[str, Stored], problems: Mapping[str, str] | None = None
) -> None:
    """Copy stored tensors into a model's own, whose precision and device they take.

    All names and shapes are compared before the first tensor is read. A table of tokens may have more
    rows in the model than in the file: the new ones begin as the mean of the old, so that a new token
    is no likelier than the average one and its vector lies among the others (Hewitt 2021, "Initializing
    new word embeddings for pretrained language models").

    Args:
        model: what is filled.
        tensors: by the model's names.
        problems: what was found wrong before, by the name of the tensor, and is told with the rest.

    Raises:
        ConfigError: with one line for everything that is missing, left over, wrongly shaped, or differs
            from what the model shares it with.
    """
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    if isinstance(getattr(model, "head", None), nn.Identity):  # taken off: a classifier has its own
        tensors = {name: stored for name, stored in tensors.items() if name != "head.weight"}
    problems = problems or {}
    refuse([*problems.values(), *_misfits(state, tensors, told=problems)])
    filled: set[int] = set()
    untied = []
    for name, tensor in state.items():
        if id(tensor) not in filled:
            _copy(tensor, tensors[name].read())
            filled.add(id(tensor))
        elif not _holds(tensor, tensors[name].read()):
            untied.append(
                f"untied: {tensors[name].name} differs from what the model shares it with; "
                "set model.tie_weights=false"
            )
    refuse(untied)


def refuse(problems: Sequence[str]) -> None:
    """Raise one error for all problems, if there are any.

    Raises:
        ConfigError: there are.
    """
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        head = f"weights: they do not fit the model, {count}:"
        raise ConfigError(head, *(f"  {line}" for line in problems))


def _misfits(
    state: Mapping[str, Tensor], tensors: Mapping[str, Stored], told: Container[str]
) -> Iterator[str]:
    for name, tensor in state.items():
        if name in told:
            continue
        if name not in tensors:
            yield f"missing: what would make {name}"
        elif not _fits(name, tensors[name].shape, tuple(tensor.shape)):
            has, needs = tensors[name].shape, tuple(tensor.shape)
            yield f"wrong shape: {tensors[name].name} makes {has}, {name} is {needs}"
    yield from (f"left over: {tensors[name].name}" for name in tensors if name not in state)


def _fits(name: str, has: Shape, needs: Shape) -> bool:
    grown = name in TABLES and has[1:] == needs[1:] and 0 < has[0] < needs[0]
    return has == needs or grown


def _copy(tensor: Tensor, stored: Tensor) -> None:
    tensor[: len(stored)].copy_(stored) if stored.dim() else tensor.copy_(stored)
    if stored.dim() and len(tensor) > len(stored):
        tensor[len(stored) :] = tensor[: len(stored)].mean(dim=0)


def _holds(tensor: Tensor, stored: Tensor) -> bool:
    return torch.equal(tensor[: len(stored)], stored.to(tensor))
