"""Attention that skips the blocks of keys which a mask hides, by torch's FlexAttention (Dong et al. 2024).

A mask is divided into blocks of 128 queries and 128 keys. The kernel skips empty blocks, reads the mask in mixed ones
only, and never stores the (T, T) scores. The mask itself takes a byte for each pair of tokens, once for all layers of a
kind.

It runs on a GPU. torch has no backward pass for it on a CPU, so there, and where a mask hides no block, the same
function is computed by `fused_attention`. It was not measured on a GPU yet.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from llm.nn.attention import fused_attention
from llm.nn.masking_kernel import KernelMask, Mask, MaskingKernel

BLOCK = 128  # torch's own default for both sides of a block
NARROWEST = 16  # columns of a query that the kernel needs
DEVICES = ("cuda",)


@cache
def compiled_flex_attention() -> Callable[..., Any]:
    """Return the kernel, which torch compiles at its first call for all layers. Otherwise it computes all scores."""
    return torch.compile(flex_attention)


@dataclass(frozen=True, eq=False)
class FlexMask(KernelMask):
    """A mask in blocks, and what is added to the scores.

    Attributes:
        blocks: which blocks are empty, full or mixed.
        bias: (H, T, T) or (B, H, T, T).
    """

    blocks: BlockMask
    bias: Tensor | None = None


@dataclass(frozen=True)
class FlexAttention(MaskingKernel):
    """The kernel that computes the same as `naive_attention` and skips what a mask hides.

    Args:
        softcap: bound of the scores, see `naive_attention`.
    """

    softcap: float | None = None

    def __call__(
        self,
        query: Float[Tensor, "B H T D"],
        key: Float[Tensor, "B K S D"],
        value: Float[Tensor, "B K S D"],
        *,
        mask: Mask = None,
        causal: bool = False,
        window: int | None = None,
        dropout: float = 0.0,
    ) -> Float[Tensor, "B H T D"]:
        """Return attention with the mask that `make_mask` has made, or with another as `fused_attention` does."""
        if not isinstance(mask, FlexMask):
            limits = {"mask": mask, "causal": causal, "window": window}
            return fused_attention(
                query, key, value, **limits, dropout=dropout, softcap=self.softcap
            )
        # Within a model that is compiled as a whole, it is a part of that.
        is_compiling = torch.compiler.is_compiling()
        attend = flex_attention if is_compiling else compiled_flex_attention()
        found = attend(
            query,
            key,
            value,
            score_mod=_score_mod(self.softcap, mask.bias),
            block_mask=mask.blocks,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return cast(Tensor, found)

    def require(self, *, width: int, dropout: float, has_sinks: bool) -> None:
        """Raise a ValueError if the kernel cannot compute a layer, on any device: a run may move to another."""
        instead = "or use model/kernel=fused"
        if dropout:
            raise ValueError(
                f"dropout={dropout}: FlexAttention cannot drop attention weights; set it to 0, {instead}"
            )
        if has_sinks:
            raise ValueError(
                f"sinks: FlexAttention has no score for them; leave them out, {instead}"
            )
        if width < NARROWEST:
            raise ValueError(
                f"kernel: FlexAttention needs heads of {NARROWEST} columns or more, and these have {width}; use "
                f"fewer heads, {instead}"
            )

    def wants_mask(self, x: Float[Tensor, "B T C"], known: Mapping[str, Any] | None) -> bool:
        """Return whether blocks can be skipped, or torch's fused kernel cannot bound the scores."""
        is_dense = known is not None and known.get("window") is None and self.softcap is None
        return x.device.type in DEVICES and x.shape[1] > BLOCK and not is_dense

    def make_mask(
        self, allowed: Bool[Tensor, "*rows 1 T T"], *, bias: Float[Tensor, "*other H T T"] | None
    ) -> FlexMask:
        """Return the mask in blocks."""
        return FlexMask(block_mask(allowed.squeeze(-3)), bias)


def block_mask(allowed: Bool[Tensor, "*rows T S"]) -> BlockMask:
    """Return a mask in blocks of 128 queries and 128 keys."""
    # Mixed blocks read this tensor. A function of the indices would need no memory, but not every predicate is one of
    # single indices, and torch would compile a kernel for each mask.
    queries, keys = allowed.shape[-2:]
    if allowed.ndim == 2:  # the same for all rows of the batch
        rows, read = None, lambda b, h, q, k: allowed[q, k]
    else:
        rows, read = len(allowed), lambda b, h, q, k: allowed[b, q, k]
    return create_block_mask(read, rows, None, queries, keys, device=str(allowed.device))


def _score_mod(softcap: float | None, bias: Tensor | None) -> Callable[..., Tensor] | None:
    """Return the function of a score and its indices that torch calls before it applies the mask."""
    # The cap comes before the bias and the mask, as in the definition.
    cap = (
        (lambda score: score)
        if softcap is None
        else (lambda score: softcap * torch.tanh(score / softcap))
    )
    if bias is None:
        return None if softcap is None else lambda score, b, h, q, k: cap(score)
    if bias.ndim == 3:
        return lambda score, b, h, q, k: cap(score) + bias[h, q, k]
    return lambda score, b, h, q, k: cap(score) + bias[b, h, q, k]
