"""Loading of stored tensors into a model: strictly, in place, one tensor at a time."""

from collections.abc import Collection, Container, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm.checkpoints.lazy_tensor import LazyTensor, Shape
from llm.config.errors import ConfigError

# Tables with a row a token: these grow when tokens are added.
TABLES = ("embedding.weight", "head.weight")
ROWS = 4096
MOST_TOLD = 20  # problems of one model


@torch.no_grad()
def fill(
    model: nn.Module,
    tensors: Mapping[str, LazyTensor],
    *,
    problems: Mapping[str, str] | None = None,
    grow: Collection[str] = (),
) -> None:
    """Copy stored tensors into a model's own, whose precision and device they take.

    All names and shapes are compared before the first tensor is read.

    Args:
        model: the model to fill.
        tensors: the tensors by the model's names.
        problems: problems found before, by the name of the tensor, which are reported with the rest.
        grow: names of tables that may have more rows in the model than in the file, see `new_rows`.

    Raises:
        ConfigError: with one line for everything that is missing, left over, wrongly shaped, or differs
            from what the model shares it with.
    """
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    if isinstance(getattr(model, "head", None), nn.Identity):  # taken off: a classifier has its own
        tensors = {name: stored for name, stored in tensors.items() if name != "head.weight"}
    problems = problems or {}
    raise_problems([*problems.values(), *_misfits(state, tensors, told=problems, grow=grow)])
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
    raise_problems(untied)


def raise_problems(problems: Sequence[str]) -> None:
    """Raise one error for all problems, if there are any.

    Raises:
        ConfigError: there are.
    """
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        head = f"weights: they do not fit the model, {count}:"
        more = [f"and {len(problems) - MOST_TOLD:,} more"] if len(problems) > MOST_TOLD else []
        raise ConfigError(head, *(f"  {line}" for line in [*problems[:MOST_TOLD], *more]))


def _misfits(
    state: Mapping[str, Tensor],
    tensors: Mapping[str, LazyTensor],
    *,
    told: Container[str],
    grow: Container[str],
) -> Iterator[str]:
    for name, tensor in state.items():
        if name in told:
            continue
        if name not in tensors:
            yield f"missing: what would make {name}"
        elif not _fits(tensors[name].shape, tuple(tensor.shape), grows=name in grow):
            has, needs = tensors[name].shape, tuple(tensor.shape)
            yield f"wrong shape: {tensors[name].name} makes {has}, {name} is {needs}"
    yield from (f"left over: {tensors[name].name}" for name in tensors if name not in state)


def _fits(has: Shape, needs: Shape, *, grows: bool) -> bool:
    return has == needs or (grows and has[1:] == needs[1:] and 0 < has[0] < needs[0])


def _copy(tensor: Tensor, stored: Tensor) -> None:
    known = len(stored) if stored.dim() else None
    (tensor if known is None else tensor[:known]).copy_(stored)
    if known is not None and len(tensor) > known:
        tensor[known:] = new_rows(tensor[:known], len(tensor) - known)


def new_rows(table: Float[Tensor, "V C"], number: int) -> Float[Tensor, "number C"]:
    """Rows for tokens that a table does not know: drawn from the normal distribution of those it knows.

    So a new token is about as likely as an old one, and no new token is another one's twin: under an
    adapter that freezes the table nothing could tell the two apart. (After Hewitt 2021, "Initializing new
    word embeddings for pretrained language models", column by column.) The draw is always the same.
    """
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(number, table.shape[1], generator=random).to(table)
    return table.mean(dim=0) + table.std(dim=0, correction=0) * noise


def _holds(tensor: Tensor, stored: Tensor) -> bool:
    """Whether a tensor begins with another's rows, compared few at a time: a cast copies them."""
    pairs = zip(tensor[: len(stored)].split(ROWS), stored.split(ROWS), strict=True)
    return all(torch.equal(ours, theirs.to(ours)) for ours, theirs in pairs)
