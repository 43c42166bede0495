"""The layers of a model, which may be of several kinds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from llm.nn.block import Block
from llm.nn.context import Context
from llm.nn.layer_schedule import Layer, layer_schedule
from llm.nn.token_mixer import Link

# The kind of all layers of a model without kinds.
UNIFORM = "all"


class Stack(nn.ModuleList):
    """A sequence of blocks.

    Args:
        dim: width C of the model.
        num_layers: number of blocks.
        layer: the model's own parts. Its position and mask come with the context of a forward pass.
        layers: kinds of layers, by name; without any, all blocks have the model's parts.
        pattern: the order of the kinds, see `layer_schedule`; None takes each kind once.

    Attributes:
        schedule: the name of each block's kind.
        links: what each block reads of an earlier one; None for nothing.
        offers: the names of what later blocks read of each block.

    Raises:
        ValueError: the pattern and the kinds do not fit each other, a kind gives a position or a mask to a
            recurrence, a layer has no earlier one to read, or none has one although the layers add what an
            earlier one computes.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        *,
        layer: Layer,
        layers: Mapping[str, Layer] | None = None,
        pattern: Sequence[str] | None = None,
    ) -> None:
        layers = layers or ({UNIFORM: layer} if pattern is None else {})
        kinds = {name: _completed(kind, layer) for name, kind in layers.items()}
        self.schedule = layer_schedule(
            num_layers, layers=kinds, pattern=[*kinds] if pattern is None else pattern
        )
        blocks = [_block(dim, kinds[name]) for name in self.schedule]
        for name, block in zip(self.schedule, blocks, strict=True):
            _require_used(name, block)
        wanted = {name for block in blocks for name in block.attention.reads}
        self.links = [self._connected(index, blocks) for index in range(num_layers)]
        self.offers = [self._offers(index) for index in range(num_layers)]
        for name in wanted - {link.name for link in self.links if link is not None}:
            raise ValueError(
                f"attention: no layer has an earlier one whose {name} it could add to its own, so nothing changes; use "
                "more layers, or an attention without this part"
            )
        super().__init__(blocks)

    def forward(self, x: Float[Tensor, "B T C"], context: Context) -> Float[Tensor, "B T C"]:
        """Return the states after the last block."""
        shared: dict[str, dict[str, Any]] = {}
        offered: dict[int, dict[str, Any]] = {}
        blocks = cast(Iterable[Block], self)
        for index, (kind, block) in enumerate(zip(self.schedule, blocks, strict=True)):
            cache = context.cache.layers[index] if context.cache is not None else None
            if not shared.get(kind):  # a block on another device prepares nothing
                shared[kind] = block.prepare(x, context, cache=cache)
            inputs = {**shared[kind], "cache": cache}
            if (link := self.links[index]) is not None:
                inputs["source"] = offered[link.layer][link.name]
            if self.offers[index]:
                x, offered[index] = block(x, **inputs, offers=self.offers[index])
            else:
                x = block(x, **inputs)
        return x

    def _offers(self, layer: int) -> list[str]:
        return sorted(
            {link.name for link in self.links if link is not None and link.layer == layer}
        )

    def _connected(self, index: int, blocks: Sequence[Block]) -> Link | None:
        try:
            return blocks[index].connect(blocks[:index])
        except ValueError as error:
            kind = self.schedule[index]
            place = "attention: this" if kind == UNIFORM else f"layers: {kind}"
            raise ValueError(f"{place} is layer {index + 1}, and {error}") from error


def _block(dim: int, kind: Layer) -> Block:
    parts = _parts(kind)
    make = parts.pop("block") or Block
    return make(dim, **parts)


def _require_used(kind: str, block: Block) -> None:
    """Refuse a position or a mask that a kind of layers gives to a recurrence."""
    for name, part in {"position": block.position, "mask": block.mask}.items():
        if part is not None and not block.attention.attends:
            raise ValueError(
                f"layers: {kind} has a {name}, and {type(block.attention).__name__} reads its tokens in order, "
                f"without a {name}; leave it out, or use model/layers=uniform"
            )


def _completed(kind: Layer, layer: Layer) -> Layer:
    """Return a kind with the model's parts where it has none of its own."""
    own = {name: part for name, part in _parts(kind).items() if part is not None}
    return replace(layer, **own)


def _parts(layer: Layer) -> dict[str, Any]:
    return {field.name: getattr(layer, field.name) for field in fields(layer)}
