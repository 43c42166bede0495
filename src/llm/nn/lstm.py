"""Long short-term memory (Hochreiter and Schmidhuber 1997), with a forget gate (Gers et al. 2000).

Each token computes four vectors from its input x and the last output h:

    i, f, o = sigmoid(W x + U h + b)        input, forget and output gate
    g       = tanh(W x + U h + b)           what may be stored
    c       ← f · c + i · g                 the cell forgets and stores
    h       ← o · tanh(c)                   and shows a part of itself

The cell changes by addition, so its gradient passes many tokens without being multiplied by a matrix.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llm.nn.document_rows import State, run_by_document
from llm.nn.recurrent_cell import Recurrence, RecurrentCell


def naive_lstm(
    x: Float[Tensor, "B T C"],
    state: State,
    *,
    input_weight: Float[Tensor, "gates C"],
    recurrent_weight: Float[Tensor, "gates H"],
    bias: Float[Tensor, "gates"],
    real: Bool[Tensor, "B T"] | None = None,
    starts: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H"], State]:
    """Return the outputs and the last state (h, c), computed token by token. This is the definition.

    Args:
        x: inputs.
        state: output h and cell c before the first token, (B, H) each.
        input_weight: W; its rows are the gates i, f, g, o of H rows each.
        recurrent_weight: U, with the same rows.
        bias: b.
        real: True for real tokens; padding leaves the state as it is.
        starts: True for the first token of a document; its state begins at 0.
    """
    hidden, cell = state
    # The part of all tokens at once: (B, T, C) @ (C, 4H) -> (B, T, 4H)
    inputs = x @ input_weight.T + bias
    outputs = []
    for t in range(x.shape[1]):
        if starts is not None:
            hidden, cell = (part * ~starts[:, t, None] for part in (hidden, cell))
        i, f, g, o = (inputs[:, t] + hidden @ recurrent_weight.T).chunk(4, dim=-1)
        new_cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        new_hidden = o.sigmoid() * new_cell.tanh()
        if real is not None:
            new_hidden = torch.where(real[:, t, None], new_hidden, hidden)
            new_cell = torch.where(real[:, t, None], new_cell, cell)
        hidden, cell = new_hidden, new_cell
        outputs.append(hidden)
    return torch.stack(outputs, dim=1), (hidden, cell)


def fused_lstm(
    x: Float[Tensor, "B T C"],
    state: State,
    *,
    input_weight: Float[Tensor, "gates C"],
    recurrent_weight: Float[Tensor, "gates H"],
    bias: Float[Tensor, "gates"],
    real: Bool[Tensor, "B T"] | None = None,
    starts: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H"], State]:
    """Compute the same as `naive_lstm` in torch's kernel, except for the outputs of padding."""
    # torch has a second bias, which is added to the first.
    weights = [input_weight, recurrent_weight, bias, torch.zeros_like(bias)]
    # With biases, one layer, without dropout, in training mode (which keeps what the gradient needs), one direction.
    settings: Any = (True, 1, 0.0, True, False)

    def packed(data: Tensor, batch_sizes: Tensor, state: State) -> tuple[Tensor, State]:
        first = [part[None] for part in state]
        output, *last = torch._VF.lstm(data, batch_sizes, first, weights, *settings)
        return output, tuple(part[0] for part in last)

    if real is not None or starts is not None:
        return run_by_document(packed, x, state, real=real, starts=starts)
    # (B, H) -> (1, B, H): one layer. The last setting: the batch is the first axis of x.
    batch_first: Any = (*settings, True)
    first = [part[None] for part in state]
    output, *last = torch._VF.lstm(x, first, weights, *batch_first)
    return output, tuple(part[0] for part in last)


class LSTM(RecurrentCell):
    """A layer of LSTM cells.

    Args:
        dim: width C of the model, the output and the cell.
        dropout: probability for the output.
        recurrence: the function that computes the layer: `naive_lstm` or an equivalent.
    """

    num_gates = num_biases = 4
    state_names = ("hidden", "cell")
    definition = staticmethod(naive_lstm)

    def __init__(
        self, dim: int, *, dropout: float = 0.0, recurrence: Recurrence = fused_lstm
    ) -> None:
        super().__init__(dim, dropout=dropout, recurrence=recurrence)

    def reset_parameters(self) -> None:
        """Draw the matrices, and set the biases to 0, but that of the forget gate to 1.

        The cell then begins by keeping what it stores (Jozefowicz et al. 2015).
        """
        super().reset_parameters()
        nn.init.ones_(self.bias.data[self.dim : 2 * self.dim])
