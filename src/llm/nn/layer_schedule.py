"""Which kind of block each layer is: named kinds in a pattern that repeats.

    layers:
      local: {_target_: llm.nn.layer_schedule.Layer, mask: {_target_: llm.nn.masks.sliding_window, size: 64}}
      full: {_target_: llm.nn.layer_schedule.Layer}
    pattern: [5*local, full]

Gemma 3 repeats five local layers and a full one, SmolLM3 leaves out the position in every fourth layer, and many
mixtures of experts alternate with dense layers. A stack of four layers takes `[3*local, full]` of the pattern above.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

from torch import nn

from llm.config.errors import suggestion
from llm.nn.block import Block
from llm.nn.masks import Predicate
from llm.nn.positions import Position
from llm.nn.residual import Residual
from llm.nn.token_mixer import TokenMixer


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A kind of layer: the parts that differ from those of the model. None takes the model's own part.

    Attributes:
        attention: makes the attention layer for a width, or a recurrence in its place.
        feed_forward: makes the feed-forward layer for a width; `no_feed_forward` leaves it out.
        norm: makes a norm for a width.
        residual: adds a sublayer to the residual stream.
        block: arranges these parts, such as `Block`.
        position: rotates queries and keys, or adds a bias to their scores.
        mask: which keys a query may attend to.

    Raises:
        ValueError: the position is added to the embeddings, which all layers share.
    """

    attention: Callable[[int], TokenMixer] | None = None
    feed_forward: Callable[[int], nn.Module | None] | None = None
    norm: Callable[[int], nn.Module] | None = None
    residual: Residual | None = None
    block: Callable[..., Block] | None = None
    position: Position | None = None
    mask: Predicate | None = None

    def __post_init__(self) -> None:
        if self.position is not None and type(self.position).embed is not Position.embed:
            raise ValueError(
                f"position: {type(self.position).__name__} is added to the embeddings, before the first layer; set "
                "model.position, or use rotary, alibi or none for a layer"
            )


def layer_schedule(
    num_layers: int, *, layers: Mapping[str, Layer], pattern: Sequence[str]
) -> list[str]:
    """Return the name of each layer's kind.

    Args:
        num_layers: number of layers; the last repetition of the pattern may be cut short. A pattern that is longer
            than the stack is shortened: its longest run of one kind loses a layer until it fits.
        layers: the kinds, by name.
        pattern: their order, such as `[5*local, full]`.

    Raises:
        ValueError: the pattern is not a list, names an unknown kind, leaves one out, or has too many runs for the
            stack.
    """
    if isinstance(pattern, str) or not pattern:
        raise ValueError(
            f"pattern={pattern or []}: give a list of the kinds in layers, such as [{','.join(layers) or 'local,full'}]"
        )
    names = [name for entry in pattern for name in _repeated(entry)]
    shown = f"pattern=[{','.join(pattern)}]"
    if not layers:
        raise ValueError(
            f"{shown}: there are no kinds of layers; choose some with model/layers=local_global, or define them in "
            "layers"
        )
    for name in names:
        if name not in layers:
            raise ValueError(f"{shown}: {name} is not in layers; {suggestion(name, layers)}")
    if unused := [name for name in layers if name not in names]:
        raise ValueError(f"{shown}: leaves out layers.{unused[0]}; add it, or delete that kind")
    names = _shortened(names, num_layers)
    if len(names) > num_layers:
        once = (
            f"a shorter pattern, such as [{','.join(layers)}], or "
            if len(layers) <= num_layers
            else ""
        )
        raise ValueError(
            f"{shown}: needs {len(names)} layers or more, and num_layers={num_layers}; use {once}more layers"
        )
    return [names[index % len(names)] for index in range(num_layers)]


def describe_schedule(schedule: Sequence[str]) -> str:
    """Return how many layers of each kind there are, such as `10 local, 2 full`."""
    return ", ".join(f"{count} {name}" for name, count in Counter(schedule).items())


def _shortened(names: Sequence[str], most: int) -> list[str]:
    """Return a pattern with shorter runs of one kind: at most `most` layers, or one of each run."""
    runs = [[*run] for _, run in groupby(names)]
    while sum(map(len, runs)) > most and len(longest := max(runs, key=len)) > 1:
        longest.pop()
    return [*chain(*runs)]


def _repeated(entry: str) -> list[str]:
    """Return the names in an entry of a pattern: `5*local` is five times `local`."""
    times = re.fullmatch(r"(\d+)\s*\*\s*(.+)", entry)
    return [entry] if times is None else [times[2]] * int(times[1])
