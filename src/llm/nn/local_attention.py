"""Attention within a sliding window, computed in blocks of the window's size (Beltagy et al. 2020, section 3.1).

A query attends to its own block of keys and to the one before, so time and memory grow with T · 2W instead of T².

    blocks of 2 and a window of 2:   ■ · · · · ·      keys of block:   –, 0   · · ■ ·
                                     ■ ■ · · · ·                              · · ■ ■   (· · is a block of zeros)
                                     · ■ ■ · · ·                       0, 1   · ■ ■ ·
                                     · · ■ ■ · ·                              · · ■ ■
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def local_attention(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B K T D"],
    value: Float[Tensor, "B K T D"],
    *,
    window: int,
    kernel: Callable[..., Tensor],
) -> Float[Tensor, "B H T D"]:
    """Return causal attention to the last `window` keys, for all T positions of a text.

    Args:
        query: queries.
        key: keys of the same positions.
        value: values of the same positions.
        window: number W of keys that a query attends to, its own included.
        kernel: computes attention with a mask, as `naive_attention` does.
    """
    batch, length = query.shape[0], query.shape[2]
    number = -(-length // window)
    # Padding at the end is later than every query, so no query attends to it.
    padding = (0, 0, 0, number * window - length)
    query, key, value = (
        F.pad(each, padding).unflatten(2, (number, window)) for each in (query, key, value)
    )
    # (B, K, N, W, D) -> (B, K, N, 2W, D): the block before, zeros before the first, and the block itself.
    key, value = (
        torch.cat((F.pad(each, (0, 0, 0, 0, 1, 0))[:, :, :-1], each), dim=3)
        for each in (key, value)
    )
    # (B, heads, N, …) -> (N, B · heads, …): the mask depends on the block only, and consecutive query heads still
    # share a key head.
    query, key, value = (each.permute(2, 0, 1, 3, 4).flatten(1, 2) for each in (query, key, value))
    mask = _block_mask(number, window, device=query.device)
    heads = kernel(query, key, value, mask=mask)
    # (N, B · H, W, D) -> (B, H, N, W, D) -> (B, H, T, D)
    heads = heads.unflatten(1, (batch, -1)).permute(1, 2, 0, 3, 4).flatten(2, 3)
    return heads[:, :, :length]


def _block_mask(number: int, window: int, *, device: torch.device) -> Bool[Tensor, "N 1 W W2"]:
    """Return which of 2W keys each query of a block may attend to; those before the first block do not exist."""
    query = torch.arange(window, device=device)[:, None] + window
    key = torch.arange(2 * window, device=device)
    allowed = (query - key >= 0) & (query - key < window)
    exists = (key >= window) | (torch.arange(number, device=device)[:, None] > 0)
    # (1, W, 2W) & (N, 1, 2W) -> (N, 1, W, 2W)
    return (allowed & exists[:, None, :]).unsqueeze(1)
