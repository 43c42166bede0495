"""Attention within a sliding window, computed in blocks of the window's size (Beltagy et al. 2020, section 3.1).

A query attends to its own block of keys and to the one before, so time and memory grow with T · 2W instead of T².

    blocks of 2 and a window of 2:   ■ · · · · ·      keys of block:   –, 0   · · ■ ·
                                     ■ ■ · · · ·                              · · ■ ■   (· · is a block of zeros)
                                     · ■ ■ · · ·                       0, 1   · ■ ■ ·
                                     · · ■ ■ · ·                              · · ■ ■
"""

from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from llm.nn.masks import RowLimits


def local_attention(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B K T D"],
    value: Float[Tensor, "B K T D"],
    *,
    window: int,
    kernel: Callable[..., Tensor],
    limits: RowLimits | None = None,
) -> Float[Tensor, "B H T D"]:
    """Return causal attention to the last `window` keys, for all T positions of a text.

    Args:
        query: queries.
        key: keys of the same positions.
        value: values of the same positions.
        window: number W of keys that a query attends to, its own included.
        kernel: computes attention with a mask, as `naive_attention` does.
        limits: padding and documents.
    """
    batch, length = query.shape[0], query.shape[2]
    mask = _block_mask(length, window, device=query.device)
    if limits is not None:
        mask = mask & _row_mask(limits, length, window)
    # (N, W, 2W) or (B, N, W, 2W) -> (B · N, 1, W, 2W)
    mask = mask.expand(batch, -1, -1, -1).flatten(0, 1).unsqueeze(1)
    # (B, H, T, D) -> (B, H, N, W, D); keys and values with the block before: (B, K, N, 2W, D).
    query = _blocks(query, window)
    key, value = (_with_previous(_blocks(each, window)) for each in (key, value))
    # (B, heads, N, …) -> (B · N, heads, …)
    query, key, value = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
    heads = kernel(query, key, value, mask=mask)
    # (B · N, H, W, D) -> (B, H, N, W, D) -> (B, H, T, D)
    heads = heads.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)
    return heads[:, :, :length]


def _blocks(x: Shaped[Tensor, "B heads T D"], window: int) -> Shaped[Tensor, "B heads N W D"]:
    """Return blocks of W positions; the last one is filled with zeros, later than every query."""
    number = -(-x.shape[2] // window)
    return F.pad(x, (0, 0, 0, number * window - x.shape[2])).unflatten(2, (number, window))


def _with_previous(x: Shaped[Tensor, "B heads N W D"]) -> Shaped[Tensor, "B heads N W2 D"]:
    """Return each block after the one before it, which is zeros for the first."""
    return torch.cat((F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x), dim=3)


def _block_mask(length: int, window: int, *, device: torch.device) -> Bool[Tensor, "N W W2"]:
    """Return which of 2W keys each query of a block may attend to; those before the first block do not exist."""
    query = torch.arange(window, device=device)[:, None] + window
    key = torch.arange(2 * window, device=device)
    allowed = (query - key >= 0) & (query - key < window)
    number = -(-length // window)
    exists = (key >= window) | (torch.arange(number, device=device)[:, None] > 0)
    # (W, 2W) & (N, 1, 2W) -> (N, W, 2W)
    return allowed & exists[:, None, :]


def _row_mask(limits: RowLimits, length: int, window: int) -> Bool[Tensor, "B N W W2"]:
    """Return the padding and documents of each block."""
    allowed = []
    if limits.real is not None:
        # (B, T) -> (B, N, 1, 2W)
        key = _with_previous(_blocks(limits.real[:, None, :length, None], window))
        key = key.squeeze((1, -1)).unsqueeze(-2)
        # As in `not_padding`, each query may attend to itself, which is key W + t of its block.
        itself = torch.ones(window, 2 * window, dtype=torch.bool, device=key.device)
        allowed.append(key | itself.triu(window).tril(window))
    if limits.document_ids is not None:
        query = _blocks(limits.document_ids[:, None, :, None], window)
        key = _with_previous(query)
        # (B, N, W, 1) == (B, N, 1, 2W)
        allowed.append(query.squeeze(1) == key.squeeze((1, -1)).unsqueeze(-2))
    return reduce(torch.logical_and, allowed)
