"""The recurrent state that truncated backpropagation through time carries from window to window.

Gradients stop at the start of a window, but the state does not (Williams and Peng 1990; Mikolov et al. 2010).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Bool
from torch import Tensor

from llm import distributed
from llm.models.gpt import GPT
from llm.nn.kv_cache import Cache
from llm.nn.recurrent_mixer import CarriedState, RecurrentState

# The tensors of each layer by name; the first axis is that of the rows.
LayerStates = list[dict[str, Tensor]]


class CarriedStates:
    """The states after the newest window of each micro-batch of an optimizer step, on this rank.

    Attributes:
        states: the states by the number of the micro-batch.
    """

    def __init__(self) -> None:
        self.states: dict[int, LayerStates] = {}

    @contextmanager
    def window(
        self, model: GPT, continues: Bool[Tensor, "B"], micro_batch: int = 0
    ) -> Iterator[Cache]:
        """Give the cache for a forward pass on the next window, and keep the states after it.

        Args:
            model: the model, whose layers are all recurrent.
            continues: whether a row continues the row of the window before; otherwise it starts from the zero state.
            micro_batch: number of the micro-batch.
        """
        cache = model.new_cache(len(continues))
        before = [cast(RecurrentState, layer).parts for layer in cache.layers]
        if (kept := self.states.get(micro_batch)) is not None:
            # A row that overflowed starts from the zero state; otherwise all later windows of its stream would too.
            rows = continues & finite_rows(kept).to(continues.device)
            before = [chosen(rows, *pair) for pair in zip(kept, before, strict=True)]
        layers = cache.layers = [CarriedState(**parts) for parts in before]
        yield cache
        # Copies, because a part may be a view of the activations of a whole window.
        self.states[micro_batch] = [
            {name: part.clone() for name, part in layer.after.items()} for layer in layers
        ]

    def gathered(self) -> LayerStates:
        """Return the states of all streams on the CPU, in the order of the rows of an optimizer step."""
        micro_batches = [self.states[number] for number in sorted(self.states)]
        own = [joined_rows(parts, torch.cat) for parts in zip(*micro_batches, strict=True)]
        # Rank r has the rows r, r + world size, …: (ranks, rows of a rank, …) -> (rows, …)
        ranks = distributed.gather(
            [{name: part.cpu() for name, part in each.items()} for each in own]
        )
        return [joined_rows(parts, interleaved) for parts in zip(*ranks, strict=True)]

    def restore(self, streams: LayerStates, *, rank: int, ranks: int, micro_batches: int) -> None:
        """Take this rank's rows of what `gathered` returned, on any number of ranks."""
        own = [
            {name: part[rank::ranks].chunk(micro_batches) for name, part in parts.items()}
            for parts in streams
        ]
        self.states = {
            number: [{name: part[number] for name, part in parts.items()} for parts in own]
            for number in range(micro_batches)
        }


def joined_rows(
    states: Sequence[dict[str, Tensor]], join: Callable[[list[Tensor]], Tensor]
) -> dict[str, Tensor]:
    """Return the states of one layer in several parts of the rows as one."""
    return {name: join([part[name] for part in states]) for name in states[0]}


def interleaved(parts: list[Tensor]) -> Tensor:
    """Return the rows of parts in turn: the first row of each, then the second of each."""
    return torch.stack(parts, dim=1).flatten(0, 1)


def finite_rows(states: Sequence[dict[str, Tensor]]) -> Bool[Tensor, "B"]:
    """Return whether all numbers of a row are finite, in all layers."""
    parts = [part for layer in states for part in layer.values()]
    return torch.stack([part.flatten(1).isfinite().all(dim=1) for part in parts]).all(dim=0)


def chosen(
    rows: Bool[Tensor, "B"], kept: dict[str, Tensor], new: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the kept tensors in the rows that are true, and the new ones in the others."""
    return {
        # (B) -> (B, 1, …)
        name: torch.where(rows.view(-1, *[1] * (part.dim() - 1)), kept[name].to(part), part)
        for name, part in new.items()
    }
