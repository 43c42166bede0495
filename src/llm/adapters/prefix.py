"""Prefix tuning: trainable keys and values, visible to all tokens (Li and Liang 2021).

Each attention layer gets P trainable columns before those of the text. They act like a preceding context that need
not consist of words.
"""

from collections.abc import Iterable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from llm.adapters.base import Adapted, Adapter
from llm.models.gpt import GPT
from llm.nn.attention import Attention, Kernel, window_mask
from llm.nn.block import Block
from llm.nn.kv_cache import Cache
from llm.nn.masks import RowLimits, causal


class PrefixKernel(Adapted):
    """An attention kernel whose queries also attend to a prefix.

    The causal mask is aligned to the last key, so it stays correct; other masks are padded on the left. The cache
    contains the text alone, because the prefix is added after it.

    Args:
        base: the kernel, as `Attention` takes it.
        key: (K, P, D), the keys of the prefix.
        value: (K, P, D), its values.
    """

    def __init__(
        self, base: Kernel, *, key: Float[Tensor, "K P D"], value: Float[Tensor, "K P D"]
    ) -> None:
        super().__init__()
        self.base = base
        self.key = nn.Parameter(key)
        self.value = nn.Parameter(value)

    def forward(
        self,
        query: Float[Tensor, "B H T D"],
        key: Float[Tensor, "B K S D"],
        value: Float[Tensor, "B K S D"],
        *,
        mask: Tensor | RowLimits | None = None,
        causal: bool = False,
        window: int | None = None,
        dropout: float = 0.0,
    ) -> Float[Tensor, "B H T D"]:
        """Compute attention over prefix and text; the arguments are those of `naive_attention`."""
        if self.enabled:
            if isinstance(mask, RowLimits):
                mask = mask.dense(query)
            # The prefix is visible from everywhere, so a window needs a mask of its own.
            if window is not None:
                allowed, window = window_mask(query, key, window=window), None
                mask = allowed if mask is None else allowed & mask
            key, value = _join(self.key, key), _join(self.value, value)
            if mask is not None:
                visible = True if mask.dtype == torch.bool else 0.0
                mask = F.pad(mask, (self.key.shape[1], 0), value=visible)
        return self.base(
            query, key, value, mask=mask, causal=causal, window=window, dropout=dropout
        )


def _join(
    prefix: Float[Tensor, "K P D"], text: Float[Tensor, "B K S D"]
) -> Float[Tensor, "B K S_and_P D"]:
    columns = prefix.to(text.dtype).expand(text.shape[0], -1, -1, -1)
    return torch.cat((columns, text), dim=2)


class Prefix(Adapter):
    """An adapter with trainable keys and values before those of every layer; the rest is frozen.

    They are initialized with those of random tokens. Li and Liang found that randomly initialized keys and values
    train badly, unless a network generates them or they start from activations of real words (sections 4.3 and 7.4).

    Use AdamW with a larger learning rate than for weights, 0.01 to 0.03: Muon orthogonalizes, which suits matrices.

    Args:
        length: P, the number of columns.
        frozen_dtype: see `Adapter`.

    Raises:
        ValueError: the length is not positive.
    """

    def __init__(self, length: int = 20, frozen_dtype: Literal["bfloat16"] | None = None) -> None:
        super().__init__(frozen_dtype)
        if length < 1:
            raise ValueError(f"length={length}: give 1 or more")
        self.length = length

    def adapt(self, model: nn.Module) -> None:
        """Wrap the kernel of every attention layer.

        Raises:
            ValueError: the model contains no GPT, has layers without keys or a prefix already, or its context is
                shorter than the prefix.
        """
        body = next((module for module in model.modules() if isinstance(module, GPT)), None)
        if body is None:
            raise ValueError(
                f"adapter=prefix needs a GPT, and {type(model).__name__} contains none; choose adapter=lora"
            )
        if other := next((b for b in body.blocks if not isinstance(b.attention, Attention)), None):
            raise ValueError(
                f"a prefix extends layers of class Attention, and one is {type(other.attention).__name__}; "
                "choose adapter=last_block, or adapter=none to train all weights"
            )
        if any(isinstance(module, PrefixKernel) for module in body.modules()):
            raise ValueError("the model has a prefix already; apply only one")
        for block, (key, value) in zip(body.blocks, self._draw(body), strict=True):
            attention = cast(Attention, block.attention)
            attention.kernel = PrefixKernel(attention.kernel, key=key, value=value)

    @torch.no_grad()
    def _draw(self, model: GPT) -> list[tuple[Tensor, Tensor]]:
        """Return each layer's keys and values, (K, P, D), for P random tokens."""
        if self.length > model.context_length:
            raise ValueError(
                f"length={self.length}: give no more than context_length={model.context_length}"
            )
        was_training = model.training
        table = model.embedding.weight
        dtype = torch.promote_types(table.dtype, torch.float32)
        tokens = torch.randint(model.vocab_size, (1, self.length), device=table.device)
        # All P columns are kept, also those that have left the window of a layer.
        layers = [
            cast(Attention, block.attention).new_cache(1, self.length, dtype=dtype, mask=causal)
            for block in cast(Iterable[Block], model.blocks)
        ]
        cache = Cache(layers, batch_size=1, capacity=self.length, device=table.device)
        model.eval().hidden_states(tokens, cache=cache)
        model.train(was_training)
        return [(layer.keys[0].clone(), layer.values[0].clone()) for layer in layers]
