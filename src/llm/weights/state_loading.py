"""Strict loading of stored tensors into a model, in place and one tensor at a time."""

from collections.abc import Collection, Container, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm.checkpoints.lazy_tensor import LazyTensor
from llm.config.errors import ConfigError

# Tensors with one row per token, which grow when tokens are added.
TABLES = ("embedding.weight", "head.weight")
ROWS = 4096  # compared at a time
MOST_PROBLEMS = 20  # listed in one error


def fill(
    model: nn.Module,
    tensors: Mapping[str, LazyTensor],
    *,
    problems: Mapping[str, str] | None = None,
    grow: Collection[str] = (),
) -> None:
    """Copy stored tensors into the tensors of a model, which keep their dtype and device.

    Compares all names and shapes before reading the first tensor.

    Args:
        model: the model to fill.
        tensors: the tensors by the model's names.
        problems: problems to report with the others, by the name of the tensor.
        grow: names of tensors that may have more rows in the model than in the file, see `new_rows`.

    Raises:
        ConfigError: lists all tensors that are missing, unexpected, of a wrong shape, or different from a tensor that
            the model ties them to.
    """
    if has_no_head(model):
        tensors = {n: stored for n, stored in tensors.items() if not n.startswith("head.")}
    fill_state(model.state_dict(keep_vars=True), tensors, problems=problems or {}, grow=grow)


@torch.no_grad()
def fill_state(
    state: Mapping[str, Tensor],
    tensors: Mapping[str, LazyTensor],
    *,
    problems: Mapping[str, str],
    grow: Collection[str] = (),
) -> None:
    """Fill a state; the arguments and errors are those of `fill`."""
    raise_problems([*problems.values(), *_misfits(state, tensors, known=problems, grow=grow)])
    filled: set[int] = set()
    untied = []
    for name, tensor in state.items():
        if id(tensor) not in filled:
            _copy(tensor, tensors[name].read())
            filled.add(id(tensor))
        elif not _holds(tensor, tensors[name].read()):
            untied.append(
                f"untied: {tensors[name].name} differs from the tensor that the model ties it to; "
                "set model.tie_weights=false"
            )
    raise_problems(untied)


def has_no_head(model: nn.Module) -> bool:
    """Return whether a classifier removed the head of its language model."""
    return isinstance(getattr(model, "head", None), nn.Identity)


def raise_problems(problems: Sequence[str]) -> None:
    """Raise one error with all problems.

    Raises:
        ConfigError: there are problems.
    """
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [*problems[:MOST_PROBLEMS]]
        if len(problems) > MOST_PROBLEMS:
            lines.append(f"and {len(problems) - MOST_PROBLEMS:,} more")
        head = f"weights: they do not fit the model, {count}:"
        raise ConfigError(head, *(f"  {line}" for line in lines))


def _misfits(
    state: Mapping[str, Tensor],
    tensors: Mapping[str, LazyTensor],
    *,
    known: Container[str],
    grow: Container[str],
) -> Iterator[str]:
    for name, tensor in state.items():
        if name in known:
            continue
        if name not in tensors:
            yield f"missing: a tensor for {name}"
            continue
        has, needs = tensors[name].shape, tuple(tensor.shape)
        grows = name in grow and has[1:] == needs[1:] and 0 < has[0] < needs[0]
        if has != needs and not grows:
            yield f"wrong shape: {name} needs {needs}, but {has} is stored in {tensors[name].name}"
    yield from (f"unexpected: {tensors[name].name}" for name in tensors if name not in state)


def _copy(tensor: Tensor, stored: Tensor) -> None:
    known = len(stored) if stored.dim() else None
    (tensor if known is None else tensor[:known]).copy_(stored)
    if known is not None and len(tensor) > known:
        tensor[known:] = new_rows(tensor[:known], len(tensor) - known)


def new_rows(table: Float[Tensor, "V C"], number: int) -> Float[Tensor, "number C"]:
    """Return rows for new tokens, from a normal distribution with each column's mean and deviation and a fixed seed.

    A new token is then about as probable as an old one (after Hewitt 2021, "Initializing new word embeddings for
    pretrained language models"). The rows differ, because an adapter that freezes the table cannot separate equal rows.
    """
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(number, table.shape[1], generator=random).to(table)
    return table.mean(dim=0) + table.std(dim=0, correction=0) * noise


def _holds(tensor: Tensor, stored: Tensor) -> bool:
    """Return whether a tensor begins with the stored rows; few at a time, because a cast copies them."""
    pairs = zip(tensor[: len(stored)].split(ROWS), stored.split(ROWS), strict=True)
    return all(torch.equal(ours, theirs.to(ours)) for ours, theirs in pairs)
