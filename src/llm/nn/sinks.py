"""Attention sinks: a learned score per head that takes a part of the attention (gpt-oss, OpenAI 2025).

The weights of query t are exp(s_tj) / (exp(sink) + Σ_j exp(s_tj)), so they sum to less than 1, and a head can attend to
nothing. Without a sink, models learn to attend to the first token instead (Xiao et al. 2024, "Efficient streaming
language models with attention sinks"). A softmax with 1 for exp(sink) is in Miller 2023, "Attention is off by one".
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from llm.nn.attention import window_mask
from llm.nn.local_attention import local_attention
from llm.nn.masks import RowLimits


class Sinks(nn.Module):
    """A further key for each head, whose score is learned and whose value is 0.

    Any kernel then computes the softmax above: the key is 0, so its score comes from the mask alone.

    Args:
        num_heads: number H of query heads.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_heads))

    def forward(
        self,
        query: Float[Tensor, "B H T D"],
        key: Float[Tensor, "B K S D"],
        value: Float[Tensor, "B K S D"],
        *,
        kernel: Callable[..., Tensor],
        mask: Tensor | RowLimits | None = None,
        causal: bool = False,
        window: int | None = None,
        dropout: float = 0.0,
    ) -> Float[Tensor, "B H T D"]:
        """Return the attention of a kernel with sinks, in blocks if there is a window.

        The other arguments are those of `naive_attention`.
        """
        if not isinstance(mask, Tensor):
            if window is not None and query.shape[2] == key.shape[2] > window:
                # The keys of each block get the sinks' column.
                attend = partial(self, kernel=kernel, dropout=dropout)
                return local_attention(query, key, value, window=window, limits=mask, kernel=attend)
            mask = mask and mask.dense(query)
        key, value, mask = self.add_columns(
            query, key, value, mask=mask, causal=causal, window=window
        )
        return kernel(query, key, value, mask=mask, dropout=dropout)

    def add_columns(
        self,
        query: Float[Tensor, "B H T D"],
        key: Float[Tensor, "B K S D"],
        value: Float[Tensor, "B K S D"],
        *,
        mask: Tensor | None,
        causal: bool,
        window: int | None = None,
    ) -> tuple[Float[Tensor, "B K S_and_1 D"], Float[Tensor, "B K S_and_1 D"], Tensor]:
        """Return keys, values and a mask with the sinks' column before the others.

        The mask is floating and contains the causal mask and the window. The arguments are those of `naive_attention`.
        """
        num_queries, num_keys = query.shape[2], key.shape[2]
        # (H) -> (H, T, 1) -> (H, T, 1 + S): the sinks' scores, and nothing for the keys.
        bias = self.scores.to(query.dtype)[:, None, None].expand(-1, num_queries, 1)
        bias = F.pad(bias, (0, num_keys))
        masks = [] if mask is None else [mask]
        if causal:
            masks.append(window_mask(query, key, window=window))
        for each in masks:
            if each.dtype == torch.bool:
                bias = bias.masked_fill(~F.pad(each, (1, 0), value=True), -torch.inf)
            else:
                bias = bias + F.pad(each, (1, 0))
        return F.pad(key, (0, 0, 1, 0)), F.pad(value, (0, 0, 1, 0)), bias

    def reset_parameters(self) -> None:
        """Set each score to 0, that of a key which is orthogonal to the query."""
        nn.init.zeros_(self.scores)
