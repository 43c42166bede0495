"""Tensors of experts: one stack of ours, and one tensor for each expert in the published files."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from llm.nn.mixture_of_experts import MixtureOfExperts
from llm.weights.key_map import Rule
from llm.weights.model_parts import part_of


@dataclass(frozen=True)
class Stacked(Rule):
    """Matrices of all experts, which one tensor of ours contains."""

    def join(self, theirs: list[Tensor]) -> Tensor:
        """Return the stack of the matrices."""
        return torch.stack(theirs)

    def split(self, ours: Tensor) -> list[Tensor]:
        """Return the matrix of each expert."""
        return [*ours.unbind()]


def experts_of(model: nn.Module) -> MixtureOfExperts:
    """Return the first mixture of experts of a decoder.

    Raises:
        NoCounterpartError: there is none.
    """
    layer = cast(Any, model).blocks[0]
    key = "model.feed_forward"
    return part_of(model, MixtureOfExperts, key=key, found=layer.feed_forward)


def expert_rules(names: dict[str, str], *, number: int, ours: str, theirs: str) -> list[Rule]:
    """Return the rules for the experts of a layer.

    Args:
        names: our matrices of an expert, and theirs.
        number: number of experts.
        ours: prefix of our names.
        theirs: prefix of theirs, before the number of the expert.
    """
    return [
        Stacked(
            f"{ours}{our}.weight",
            tuple(f"{theirs}{expert}.{their}.weight" for expert in range(number)),
        )
        for our, their in names.items()
    ]
