"""The gated delta rule (Yang et al. 2024, "Gated delta networks: improving Mamba2 with delta rule").

The state S of a head is a matrix of D x V that maps keys to values, an associative memory. Token t

    decays it        S ← a_t · S                         a_t in (0, 1): forget everything a little
    corrects it      S ← S + β_t · k_t (v_t - Sᵀ k_t)ᵀ    replace what is stored under k_t by v_t, a part β_t of it
    reads it         o_t = Sᵀ q_t

Linear attention adds k vᵀ and never removes anything. The delta rule (Widrow and Hoff 1960; Schlag et al. 2021) is a
step of gradient descent on ½ |v - Sᵀ k|² with the learning rate β.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llm.nn.chunked_decay import chunk_decays, chunks, joined


def recurrent_gated_delta_rule(
    query: Float[Tensor, "B T H D"],
    key: Float[Tensor, "B T H D"],
    value: Float[Tensor, "B T H V"],
    *,
    log_decay: Float[Tensor, "B T H"],
    beta: Float[Tensor, "B T H"],
    state: Float[Tensor, "B H D V"],
    starts: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H D V"]]:
    """Return the outputs and the last state, computed token by token. This is the definition.

    Args:
        query: queries.
        key: keys of length 1.
        value: values.
        log_decay: logarithm of a_t, at most 0.
        beta: β_t, from 0 (the token changes nothing) to 1.
        state: the state before the first token.
        starts: True for the first token of a document; its state begins at 0.
    """
    outputs = []
    for t in range(query.shape[1]):
        if starts is not None:
            state = state * ~starts[:, t, None, None, None]
        # One number decays the whole matrix of a head: (B, H) -> (B, H, 1, 1)
        state = state * log_decay[:, t, :, None, None].exp()
        # What the memory answers to the key: (B, H, D) x (B, H, D, V) -> (B, H, V)
        stored = torch.einsum("bhd,bhdv->bhv", key[:, t], state)
        change = beta[:, t, :, None] * (value[:, t] - stored)
        # The outer product of key and change: (B, H, D) x (B, H, V) -> (B, H, D, V)
        state = state + key[:, t, :, :, None] * change[:, :, None, :]
        outputs.append(torch.einsum("bhd,bhdv->bhv", query[:, t], state))
    return torch.stack(outputs, dim=1), state


def chunked_gated_delta_rule(
    query: Float[Tensor, "B T H D"],
    key: Float[Tensor, "B T H D"],
    value: Float[Tensor, "B T H V"],
    *,
    log_decay: Float[Tensor, "B T H"],
    beta: Float[Tensor, "B T H"],
    state: Float[Tensor, "B H D V"],
    starts: Bool[Tensor, "B T"] | None = None,
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H D V"]]:
    """Compute the same as `recurrent_gated_delta_rule`, a chunk of tokens at once.

    Within a chunk the changes δ_i = β_i (v_i - Sᵀ k_i) depend on one another. With A_ij = β_i (k_i · k_j) · decay from
    j to i, for j < i, they solve (I + A) δ = β v - β k S, a triangular system (Yang et al. 2024, section 3.3).
    """
    length = query.shape[1]
    if length == 1:
        return recurrent_gated_delta_rule(
            query, key, value, log_decay=log_decay, beta=beta, state=state, starts=starts
        )
    size = min(chunk_size, length)
    # (B, T, H, D) -> (B, H, N, Q, D). Tokens that fill the last chunk have β = 0 and no decay: they change nothing.
    query, key, value = (chunks(each, size) for each in (query, key, value))
    decays = chunk_decays(chunks(log_decay, size), starts)
    weight = chunks(beta, size)[..., None]

    # (…, Q, D) @ (…, D, Q) -> (…, Q, Q), below the diagonal; the solver takes the diagonal as ones.
    system = (weight * key) @ key.mT * decays.pairwise
    from_state = weight * key * decays.from_start[..., None]
    right = torch.cat((weight * value, from_state), dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    # The changes if the state before the chunk were 0, and what the state takes away from them.
    change, from_state = solved.split((value.shape[-1], key.shape[-1]), dim=-1)

    scores = query @ key.mT * decays.pairwise
    query = query * decays.from_start[..., None]
    key = key * decays.to_end[..., None]
    outputs = []
    for n in range(query.shape[2]):
        # Now the state before the chunk is known: (…, Q, D) @ (…, D, V) -> (…, Q, V)
        delta = change[:, :, n] - from_state[:, :, n] @ state
        outputs.append(query[:, :, n] @ state + scores[:, :, n] @ delta)
        state = state * decays.whole[:, :, n, None, None] + key[:, :, n].mT @ delta
    return joined(torch.stack(outputs, dim=2), length), state
