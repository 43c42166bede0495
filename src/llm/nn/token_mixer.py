"""The sublayer of a block that mixes positions: attention, or a recurrence in its place.

A layer may read what an earlier layer has computed in the same forward pass, such as its keys and values. The earlier
layer's block returns it and the stack passes it to the reader (`Link`), as an input. So checkpointing, FSDP and
`torch.compile`, which see inputs and outputs only, handle it as they do the residual stream.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm.nn.context import Context
from llm.nn.layer_state import LayerState
from llm.nn.masks import Predicate
from llm.nn.positions import Position


class Link(NamedTuple):
    """What a layer reads of an earlier one.

    Attributes:
        layer: number of the earlier layer, from 0.
        name: one of the `offers` of that layer.
    """

    layer: int
    name: str


class TokenMixer(nn.Module, ABC):
    """What a block, a stack and generation ask of the sublayer that mixes positions.

    Its `forward(x, *, cache=None, **inputs)` takes the states (B, T, C) of T new tokens, the state of its layer and
    what `prepare` returned. It returns the mixed states and appends the tokens to the cache. A layer that reads an
    earlier one also takes `source`. A layer with offers takes `offered`, a dictionary that it fills with them.

    Attributes:
        attends: whether masks and relative positions apply to it.
        offers: names of what later layers can read.
    """

    attends: ClassVar[bool] = True
    offers: ClassVar[tuple[str, ...]] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of what this layer adds from an earlier layer; the first layer of a stack has nothing to add."""
        return ()

    def connect(self, own: "PlacedMixer", earlier: Sequence["PlacedMixer"]) -> Link | None:
        """Return what this layer reads of an earlier one, and None if it reads nothing. Called when the stack is made.

        Args:
            own: this layer, with its position and mask.
            earlier: the layers before it, from the first on.

        Raises:
            ValueError: no earlier layer has what it needs.
        """
        return None

    @abstractmethod
    def prepare(
        self,
        x: Float[Tensor, "B T C"],
        context: Context,
        *,
        position: Position | None,
        mask: Predicate | None,
        cache: LayerState | None,
    ) -> dict[str, Any]:
        """Return the arguments of `forward` that all layers of one kind share, besides states and cache.

        Args:
            x: states of the new tokens; only their dtype, device and shape matter.
            context: positions, padding and documents of the forward pass.
            position: the layer's own position encoding; None takes the one of the context.
            mask: the layer's own mask; None takes the one of the context.
            cache: the layer's state before the new tokens.
        """

    @abstractmethod
    def new_cache(
        self, batch_size: int, capacity: int, *, dtype: torch.dtype | None, mask: Predicate
    ) -> LayerState:
        """Return the state before the first token.

        Args:
            batch_size: number of rows B.
            capacity: most tokens of a row, for a state that grows.
            dtype: dtype of the state; None takes that of the parameters.
            mask: the layer's mask, which may bound what it needs to keep.
        """

    @abstractmethod
    def mixing_flops(self, keys: int) -> int:
        """Return the operations of training that mix one token with `keys` tokens, without those of the parameters."""


@dataclass(frozen=True, kw_only=True)
class PlacedMixer:
    """A token mixer with the position and the mask that its block gives it; None stands for those of the model."""

    mixer: TokenMixer
    position: Position | None
    mask: Predicate | None
