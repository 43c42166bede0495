"""The layers of an adapter: linear layers, chosen by patterns of their names."""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from llm.adapters.base import Adapted
from llm.config.errors import suggestion
from llm.nn.attention import Attention


class Target(NamedTuple):
    """A linear layer, or a section of a fused projection.

    Attributes:
        layer: the layer's name in the model.
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
        names = {n for n in found if fnmatchcase(n, pattern) or fnmatchcase(_last_word(n), pattern)}
        if not names:
            known = {re.sub(r"\.\d+\.", ".*.", name) for name in found}
            known |= {*map(_last_word, found)}
            raise ValueError(
                f"targets: {pattern} matches no frozen linear layer; {suggestion(pattern, known)}"
            )
        chosen |= names
    in_parts = {found[name].layer for name in chosen if not found[name].is_whole}
    targets = [target for name, target in found.items() if name in chosen]
    return [each for each in targets if not (each.is_whole and each.layer in in_parts)]


def named_targets(model: nn.Module) -> dict[str, Target]:
    """Return all targets in a model by full name: frozen linear layers and their sections."""
    targets = {}
    for name, layer in _linear_layers(model):
        parent_name, _, last = name.rpartition(".")
        targets[name] = Target(name, last, slice(0, layer.out_features))
        parent = model.get_submodule(parent_name)
        if isinstance(parent, Attention) and last == "query_key_value":
            for part, rows in _parts(parent).items():
                targets[f"{parent_name}.{part}"] = Target(name, part, rows)
    return targets


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        # Not of a subclass: an update of outputs that are bounded is not one of the weight.
        if type(module) is nn.Linear and not module.weight.requires_grad:
            parent = name.rpartition(".")[0]  # an adapted layer keeps its former name
            yield parent if isinstance(model.get_submodule(parent), Adapted) else name, module


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
