"""Documents of packed and padded rows as rows of their own, for kernels that know neither documents nor padding."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

State = tuple[Float[Tensor, "B H"], ...]
# Maps the packed data, their batch sizes and the state of each row to outputs and states.
PackedKernel = Callable[[Tensor, Tensor, State], tuple[Tensor, State]]


def run_by_document(
    kernel: PackedKernel,
    x: Float[Tensor, "B T C"],
    state: State,
    *,
    real: Bool[Tensor, "B T"] | None,
    starts: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T H"], State]:
    """Return the outputs of a recurrent kernel, 0 for padding, and the state after the last token of each row.

    Args:
        kernel: computes a `PackedSequence` of rows of different lengths.
        x: inputs.
        state: the state of each row before its first token.
        real: True for real tokens; None means all.
        starts: True for the first token of a document, whose state begins at 0; None means one document per row.
    """
    real = torch.ones_like(x[..., 0], dtype=torch.bool) if real is None else real
    row, column, lengths = _places(real, starts)
    rows, steps = row[real], column[real]
    # (B, T, C) -> (N, longest, C): the tokens of each document from column 0 on.
    padded = x.new_zeros(len(lengths), int(lengths.max().clamp(min=1)), x.shape[-1])
    padded = padded.index_put((rows, steps), x[real])
    # A packed row has at least one token; the result of an empty one is not used.
    packed = pack_padded_sequence(
        padded, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
    )
    order, back = packed.sorted_indices, packed.unsorted_indices
    # The first document of each row continues its state, unless it starts there; the others begin at 0.
    if starts is not None:
        state = tuple(part * ~starts[:, :1] for part in state)
    before = tuple(part.new_zeros(len(lengths), part.shape[1]) for part in state)
    before = tuple(
        zero.index_put((row[:, 0],), part) for zero, part in zip(before, state, strict=True)
    )
    data, after = kernel(packed.data, packed.batch_sizes, tuple(part[order] for part in before))
    padded, _ = pad_packed_sequence(packed._replace(data=data), batch_first=True)
    output = padded.new_zeros(*x.shape[:2], padded.shape[-1])
    output = output.index_put((real,), padded[rows, steps])
    last, is_empty = row[:, -1], (lengths == 0)[:, None]
    return output, tuple(
        torch.where(is_empty, old, new[back])[last] for old, new in zip(before, after, strict=True)
    )


def _places(
    real: Bool[Tensor, "B T"], starts: Bool[Tensor, "B T"] | None
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"], Int[Tensor, "N"]]:
    """Return the document of each token, counted over all rows, its index in it, and the length of each document."""
    first = torch.zeros_like(real) if starts is None else starts.clone()
    first[:, 0] = True
    row = (first.flatten().cumsum(0) - 1).view_as(real)
    count = real.flatten().long()
    lengths = count.new_zeros(int(row[-1, -1]) + 1).index_add(0, row.flatten(), count)
    begin = lengths.cumsum(0) - lengths  # number of real tokens before each document
    column = count.cumsum(0).view_as(real) - 1 - begin[row]
    return row, column, lengths
