"""Putting tensors into a model: strictly, without a second copy of the whole, and with room for new tokens."""

from collections.abc import Collection, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm.config.errors import ConfigError

# Tables with a row for each token of the vocabulary, which may have grown since the weights were made.
TOKEN_TABLES = ("embedding.weight", "head.weight")


def fill(
    model: nn.Module, state: Mapping[str, Tensor], source: str, grow: Collection[str] = ()
) -> None:
    """Let a model's parameters be the tensors of these names, in place.

    A tensor that is mapped from a file stays so, privately, until it is written to: the memory of the
    drawn parameter is given back and the file is read as it is used. Shared parameters stay shared.

    Args:
        model: its names and shapes are what is asked for.
        state: tensors by name.
        source: where they come from, for the error.
        grow: names of the tables that may have fewer rows than the model's.

    Raises:
        ConfigError: with everything that is missing, left over or wrongly shaped.
    """
    wanted = model.state_dict(keep_vars=True)
    # A model that had its head taken off asks for none.
    given = {n: t for n, t in state.items() if n in wanted or not _is_headless(model, n)}
    problems = list(mismatches({n: tuple(t.shape) for n, t in given.items()}, model, grow))
    if problems:
        raise ConfigError(f"{source}: the weights do not fit the model", *problems)
    for name, parameter in wanted.items():
        tensor = given[name].to(parameter.dtype)
        parameter.data = grown(tensor, len(parameter)) if name in grow else tensor


def mismatches(
    shapes: Mapping[str, tuple[int, ...]], model: nn.Module, grow: Collection[str] = ()
) -> Iterator[str]:
    """What keeps tensors of these shapes from filling a model, a line each."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    yield from (f"missing: {name}" for name in wanted if name not in shapes)
    yield from (f"left over: {name}" for name in shapes if name not in wanted)
    for name, shape in wanted.items():
        found = shapes.get(name, shape)
        grows = name in grow and found[1:] == shape[1:] and found[0] < shape[0]
        if found != shape and not grows:
            yield f"wrong shape: {name} is {found} in the weights and {shape} in the model"


def grown(table: Float[Tensor, "V C"], rows: int) -> Float[Tensor, "rows C"]:
    """A table of tokens with more rows: the new ones begin as the mean of the old.

    A new token then starts as the average token: its logit is neither far above nor far below the others'
    (Hewitt 2021, Initializing New Word Embeddings for Pretrained Language Models).
    """
    if len(table) == rows:
        return table
    new = table.mean(dim=0, keepdim=True).expand(rows - len(table), -1)
    return torch.cat([table, new])


def _is_headless(model: nn.Module, name: str) -> bool:
    return name.startswith("head.") and isinstance(getattr(model, "head", None), nn.Identity)
