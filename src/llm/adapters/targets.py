"""The matrices of an adapter, chosen by patterns of their names."""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor, nn

from llm.adapters.base import Adapted
from llm.config.errors import suggestion
from llm.nn.attention import Attention
from llm.nn.recurrent_cell import RecurrentCell
from llm.nn.stacked_linear import StackedLinear


class Target(NamedTuple):
    """A matrix or a stack of matrices, or a section of a fused projection.

    Attributes:
        layer: the name in the model of the layer with the matrix, or of the matrix.
        part: the section `query`, `key` or `value`, or the last word of the layer's name.
        rows: rows of the section in the layer's weight.
    """

    layer: str
    part: str
    rows: slice

    @property
    def is_whole(self) -> bool:
        """Return whether the target is the whole layer."""
        return self.part == _last_word(self.layer)


def choose_targets(model: nn.Module, patterns: Sequence[str]) -> list[Target]:
    """Return the targets whose full name, or its last word, matches a pattern of `*`, `?` and `[…]`.

    If sections of a fused projection match, the whole projection is left out.

    Raises:
        ValueError: a pattern matches nothing.
    """
    found = named_targets(model)
    chosen = set()
    for pattern in patterns:
        names = {name for name in found if _matches(name, pattern)}
        if not names:
            known = {re.sub(r"\.\d+\.", ".*.", name) for name in found}
            known |= {*map(_last_word, found)}
            raise ValueError(
                f"targets: {pattern} matches no frozen matrix; {suggestion(pattern, known)}"
            )
        chosen |= names
    in_parts = {found[name].layer for name in chosen if not found[name].is_whole}
    targets = [target for name, target in found.items() if name in chosen]
    return [each for each in targets if not (each.is_whole and each.layer in in_parts)]


def named_targets(model: nn.Module) -> dict[str, Target]:
    """Return all targets in a model by full name: frozen matrices and their sections."""
    targets = {}
    for name, weight in _matrices(model):
        parent_name, _, last = name.rpartition(".")
        targets[name] = Target(name, last, slice(0, weight.shape[-2]))
        parent = model.get_submodule(parent_name)
        if isinstance(parent, Attention) and last == "query_key_value":
            for part, rows in _parts(parent).items():
                targets[f"{parent_name}.{part}"] = Target(name, part, rows)
    return targets


def _matrices(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in model.named_modules():
        if isinstance(module, RecurrentCell):
            for matrix in module.matrices:
                weight: Tensor = getattr(module, matrix)
                if not weight.requires_grad:
                    yield f"{name}.{matrix}".strip("."), weight
        # Not of a subclass: an update of outputs that are bounded is not one of the weight.
        elif type(module) in (nn.Linear, StackedLinear):
            weight = module.get_parameter("weight")
            parent = name.rpartition(".")[0]  # an adapted layer keeps its former name
            if not weight.requires_grad:
                is_adapted = isinstance(model.get_submodule(parent), Adapted)
                yield parent if is_adapted else name, weight


def _matches(name: str, pattern: str) -> bool:
    """Return whether a pattern matches a name or its last word.

    Only a pattern with the name of routers matches them. The experts learned from the tokens that their router sends
    them, and a finetune has too few tokens to learn a new division and to keep it balanced.
    """
    if _last_word(name) == "router" and "router" not in pattern:
        return False
    return fnmatchcase(name, pattern) or fnmatchcase(_last_word(name), pattern)


def _parts(attention: Attention) -> dict[str, slice]:
    """Return the rows of each section of `query_key_value`."""
    size = attention.head_dim
    queries, keys = size * attention.num_heads, size * attention.num_kv_heads
    return {
        "query": slice(0, queries),
        "key": slice(queries, queries + keys),
        "value": slice(queries + keys, queries + 2 * keys),
    }


def _last_word(name: str) -> str:
    return name.rpartition(".")[-1]
