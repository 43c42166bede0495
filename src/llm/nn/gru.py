"""The gated recurrent unit (Cho et al. 2014), which has one state and three gates.

Each token computes from its input x and the last output h:

    r, z = sigmoid(W x + U h + b)               reset and update gate
    n    = tanh(W x + b + r · (U h + b'))       a new state, for which r resets the old one
    h    ← (1 - z) · n + z · h

As in torch, r multiplies U h; in the first version of the paper it multiplies h.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llm.nn.document_rows import State, run_by_document
from llm.nn.recurrent_cell import Recurrence, RecurrentCell


def naive_gru(
    x: Float[Tensor, "B T C"],
    state: State,
    *,
    input_weight: Float[Tensor, "gates C"],
    recurrent_weight: Float[Tensor, "gates H"],
    bias: Float[Tensor, "biases"],
    real: Bool[Tensor, "B T"] | None = None,
    starts: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H"], State]:
    """Return the outputs and the last state, computed token by token. This is the definition.

    Args:
        x: inputs.
        state: output h before the first token, (B, H).
        input_weight: W; its rows are the gates r, z, n of H rows each.
        recurrent_weight: U, with the same rows.
        bias: b for r, z and n, and then b', of H numbers each.
        real: True for real tokens; padding leaves the state as it is.
        starts: True for the first token of a document; its state begins at 0.
    """
    (hidden,) = state
    size = hidden.shape[-1]
    # The part of all tokens at once: (B, T, C) @ (C, 3H) -> (B, T, 3H)
    inputs = x @ input_weight.T + bias[: 3 * size]
    outputs = []
    for t in range(x.shape[1]):
        if starts is not None:
            hidden = hidden * ~starts[:, t, None]
        gates, candidate = inputs[:, t].split((2 * size, size), dim=-1)
        past, past_candidate = (hidden @ recurrent_weight.T).split((2 * size, size), dim=-1)
        r, z = (gates + past).sigmoid().chunk(2, dim=-1)
        n = (candidate + r * (past_candidate + bias[3 * size :])).tanh()
        new = (1 - z) * n + z * hidden
        hidden = new if real is None else torch.where(real[:, t, None], new, hidden)
        outputs.append(hidden)
    return torch.stack(outputs, dim=1), (hidden,)


def fused_gru(
    x: Float[Tensor, "B T C"],
    state: State,
    *,
    input_weight: Float[Tensor, "gates C"],
    recurrent_weight: Float[Tensor, "gates H"],
    bias: Float[Tensor, "biases"],
    real: Bool[Tensor, "B T"] | None = None,
    starts: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H"], State]:
    """Compute the same as `naive_gru` in torch's kernel, except for the outputs of padding."""
    size = state[0].shape[-1]
    # torch has a second bias for each gate; those of r and z are added to the first ones.
    second = torch.cat((bias.new_zeros(2 * size), bias[3 * size :]))
    weights = [input_weight, recurrent_weight, bias[: 3 * size], second]
    # With biases, one layer, without dropout, in training mode (which keeps what the gradient needs), one direction.
    settings: Any = (True, 1, 0.0, True, False)

    def packed(data: Tensor, batch_sizes: Tensor, state: State) -> tuple[Tensor, State]:
        output, last = torch._VF.gru(data, batch_sizes, state[0][None], weights, *settings)
        return output, (last[0],)

    if real is not None or starts is not None:
        return run_by_document(packed, x, state, real=real, starts=starts)
    # (B, H) -> (1, B, H): one layer. The last setting: the batch is the first axis of x.
    batch_first: Any = (*settings, True)
    output, last = torch._VF.gru(x, state[0][None], weights, *batch_first)
    return output, (last[0],)


class GRU(RecurrentCell):
    """A layer of gated recurrent units.

    Args:
        dim: width C of the model and of the state.
        dropout: probability for the output.
        recurrence: the function that computes the layer: `naive_gru` or an equivalent.
    """

    num_gates, num_biases = 3, 4
    state_names = ("hidden",)
    definition = staticmethod(naive_gru)

    def __init__(
        self, dim: int, *, dropout: float = 0.0, recurrence: Recurrence = fused_gru
    ) -> None:
        super().__init__(dim, dropout=dropout, recurrence=recurrence)
