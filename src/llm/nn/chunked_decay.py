"""Products of decays within chunks, with which a linear recurrence becomes a few matrix products.

A linear recurrence with decay, S_t = a_t · S_(t-1) + update_t, is sequential as written. In chunks of Q tokens, the
update of token j reaches token i of its chunk with the factor a_(j+1) · … · a_i, and the state before the chunk reaches
it with a_1 · … · a_i. These factors are all that is needed: the loop is over chunks, and a chunk is computed at once
(Yang et al. 2024, "Gated linear attention"; Dao and Gu 2024, section 6).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Decays(NamedTuple):
    """Factors between positions of N chunks of Q tokens, 0 across the border of a document.

    Attributes:
        pairwise: from the update of token j (last axis) to token i; 0 for j > i, 1 for j = i.
        from_start: from the state before the chunk to token i.
        to_end: from the update of token j to the end of the chunk.
        whole: from the state before the chunk to its end.
    """

    pairwise: Float[Tensor, "B H N Q Q"]
    from_start: Float[Tensor, "B H N Q"]
    to_end: Float[Tensor, "B H N Q"]
    whole: Float[Tensor, "B H N"]


def chunks(x: Tensor, size: int) -> Tensor:
    """Return (B, T, …) as chunks (B, H, N, Q, …) of heads, with zeros after the last token.

    Args:
        x: (B, T, H) or (B, T, H, D).
        size: number Q of tokens in a chunk.
    """
    missing = -x.shape[1] % size
    padding = (0, 0) * (x.dim() - 2) + (0, missing)
    # (B, T, H, …) -> (B, N, Q, H, …) -> (B, H, N, Q, …)
    return F.pad(x, padding).unflatten(1, (-1, size)).movedim(3, 1)


def joined(x: Float[Tensor, "B H N Q D"], length: int) -> Float[Tensor, "B T H D"]:
    """Return chunks of heads as the first `length` tokens: the inverse of `chunks`."""
    return x.movedim(1, 3).flatten(1, 2)[:, :length]


def chunk_decays(
    log_decay: Float[Tensor, "B H N Q"], starts: Bool[Tensor, "B T"] | None = None
) -> Decays:
    """Return the products of decays within each chunk.

    Args:
        log_decay: logarithm of the decay of each token, at most 0.
        starts: True for the first token of a document, which does not see the state before it.
    """
    size = log_decay.shape[-1]
    # Sums of logarithms: a product of small decays would underflow, and its inverse overflow.
    total = log_decay.cumsum(dim=-1)
    end = total[..., -1:]
    # (…, Q, 1) - (…, 1, Q) -> (…, Q, Q). A later j gives a positive number, whose exponential may overflow.
    lower = torch.ones(size, size, dtype=torch.bool, device=total.device).tril()
    between = (total[..., :, None] - total[..., None, :]).masked_fill(~lower, -torch.inf)
    decays = Decays(between.exp(), total.exp(), (end - total).exp(), end.squeeze(-1).exp())
    return decays if starts is None else _within_documents(decays, starts)


def _within_documents(decays: Decays, starts: Bool[Tensor, "B T"]) -> Decays:
    size = decays.pairwise.shape[-1]
    # (B, T) -> (B, 1, N, Q): number of starts so far, equal for two tokens of one document.
    number: Int[Tensor, "B 1 N Q"] = chunks(starts.int()[..., None], size).flatten(2).cumsum(-1)
    number = number.unflatten(-1, (-1, size))
    last = number[..., -1:]
    before = F.pad(last[..., 0], (1, -1))[..., None]  # that of the state before each chunk
    return Decays(
        decays.pairwise * (number[..., :, None] == number[..., None, :]),
        decays.from_start * (number == before),
        decays.to_end * (number == last),
        decays.whole * (last == before).squeeze(-1),
    )


def document_starts(document_ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Return True for the first token of each document after the first."""
    changed = document_ids[:, 1:] != document_ids[:, :-1]
    return F.pad(changed, (1, 0), value=False)
