"""What token mixers with a state of fixed size share."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm.nn.context import Context
from llm.nn.layer_state import LayerState
from llm.nn.masks import Predicate
from llm.nn.positions import Position
from llm.nn.token_mixer import TokenMixer


class RecurrentState(LayerState):
    """Tensors of fixed size that summarize all tokens so far.

    Args:
        parts: the tensors by name; the first axis of each is the batch.
    """

    is_bounded = True

    def __init__(self, **parts: Tensor) -> None:
        self.parts = parts
        self.length = 0

    def advance(self, count: int, **parts: Tensor) -> None:
        """Replace the tensors by those after `count` more tokens."""
        # A stored tensor keeps its dtype, also if the new one was computed under autocast.
        self.parts = {name: part.to(self.parts[name].dtype) for name, part in parts.items()}
        self.length += count

    def tensors(self) -> Iterable[Tensor]:
        """Return the tensors of the state."""
        return self.parts.values()

    def select(self, rows: Int[Tensor, "rows"]) -> None:
        """Keep some rows of the batch, in the given order."""
        self.parts = {name: part[rows] for name, part in self.parts.items()}


class CarriedState(RecurrentState):
    """The state before a window of training. It does not change; the state after the window is kept beside it.

    Activation checkpointing runs a layer twice on a window, and both passes must begin with the same state.

    Attributes:
        after: the tensors after the window, without gradient: gradients stop at its start (Williams and Peng 1990).
    """

    def __init__(self, **parts: Tensor) -> None:
        super().__init__(**parts)
        self.after = parts

    def advance(self, count: int, **parts: Tensor) -> None:
        """Keep the tensors after the window."""
        self.after = {
            name: part.detach().to(self.parts[name].dtype) for name, part in parts.items()
        }


class RecurrentMixer(TokenMixer):
    """A token mixer that reads its tokens in order, whatever their positions and the model's mask."""

    attends = False

    def prepare(
        self,
        x: Float[Tensor, "B T C"],
        context: Context,
        *,
        position: Position | None,
        mask: Predicate | None,
        cache: LayerState | None,
    ) -> dict[str, Any]:
        """Return the padding and the documents of the new tokens."""
        return {"attention_mask": context.attention_mask, "document_ids": context.document_ids}

    def new_cache(
        self, batch_size: int, capacity: int, *, dtype: torch.dtype | None, mask: Predicate
    ) -> RecurrentState:
        """Return the state before the first token. It has room for any number of tokens."""
        return self.new_state(batch_size, dtype=dtype)

    @abstractmethod
    def new_state(self, batch_size: int, *, dtype: torch.dtype | None = None) -> RecurrentState:
        """Return the state before the first token; a dtype of None means that of the parameters."""

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "B T C"],
        *,
        cache: RecurrentState | None = None,
        attention_mask: Bool[Tensor, "B T"] | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Return the mixed states.

        Args:
            x: states of T new tokens.
            cache: the state after earlier tokens; it is advanced.
            attention_mask: True for real tokens. Padding leaves the state as it is.
            document_ids: document of each token; each document starts from the zero state.
        """
