"""The recurrence of Mamba-2 (Dao and Gu 2024, "Transformers are SSMs", state space duality).

The state h of a head is a matrix of N x P. Token t decays it by a number, adds an outer product, and reads it:

    h_t = a_t · h_(t-1) + b_t x_tᵀ
    y_t = h_tᵀ c_t

This is linear attention with queries c, keys b and values x, whose past fades.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llm.nn.chunked_decay import chunk_decays, chunks, joined


def recurrent_state_space(
    x: Float[Tensor, "B T H P"],
    *,
    log_decay: Float[Tensor, "B T H"],
    b: Float[Tensor, "B T H N"],
    c: Float[Tensor, "B T H N"],
    state: Float[Tensor, "B H N P"],
    starts: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H N P"]]:
    """Return the outputs and the last state, computed token by token. This is the definition.

    Args:
        x: inputs.
        log_decay: logarithm of a_t, at most 0.
        b: where an input is written.
        c: where the state is read.
        state: the state before the first token.
        starts: True for the first token of a document; its state begins at 0.
    """
    outputs = []
    for t in range(x.shape[1]):
        if starts is not None:
            state = state * ~starts[:, t, None, None, None]
        decay = log_decay[:, t, :, None, None].exp()
        # The outer product of b and x: (B, H, N, 1) and (B, H, 1, P) -> (B, H, N, P)
        state = state * decay + b[:, t, :, :, None] * x[:, t, :, None, :]
        outputs.append(torch.einsum("bhn,bhnp->bhp", c[:, t], state))
    return torch.stack(outputs, dim=1), state


def chunked_state_space(
    x: Float[Tensor, "B T H P"],
    *,
    log_decay: Float[Tensor, "B T H"],
    b: Float[Tensor, "B T H N"],
    c: Float[Tensor, "B T H N"],
    state: Float[Tensor, "B H N P"],
    starts: Bool[Tensor, "B T"] | None = None,
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H N P"]]:
    """Compute the same as `recurrent_state_space`, a chunk of tokens at once (section 6 of the paper)."""
    length = x.shape[1]
    if length == 1:
        return recurrent_state_space(x, log_decay=log_decay, b=b, c=c, state=state, starts=starts)
    size = min(chunk_size, length)
    # (B, T, H, P) -> (B, H, L, Q, P): L chunks of Q tokens. Zeros that fill the last chunk change nothing.
    x, b, c = (chunks(each, size) for each in (x, b, c))
    decays = chunk_decays(chunks(log_decay, size), starts)
    # Within a chunk: attention without softmax, (…, Q, N) @ (…, N, Q) -> (…, Q, Q) @ (…, Q, P).
    within = (c @ b.mT * decays.pairwise) @ x
    # What each chunk adds to the state by its end: (…, N, Q) @ (…, Q, P) -> (…, N, P)
    added = (b * decays.to_end[..., None]).mT @ x
    c = c * decays.from_start[..., None]
    outputs = []
    for n in range(x.shape[2]):
        outputs.append(within[:, :, n] + c[:, :, n] @ state)
        state = state * decays.whole[:, :, n, None, None] + added[:, :, n]
    return joined(torch.stack(outputs, dim=2), length), state
