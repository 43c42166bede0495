"""Families whose local and full layers rotate differently."""

from typing import Any

from llm.models.gpt import GPT
from llm.nn.positions import Rotary
from llm.weights.huggingface import Architecture, Settings
from llm.weights.layer_windows import FULL, LOCAL, describe_windows, window_architecture
from llm.weights.model_parts import blocks_of, part_of, position_of
from llm.weights.rotary_settings import describe_rotary, rotary_values


def rotations_and_windows(
    settings: Settings, *, types: list[str], ropes: dict[str, Settings]
) -> Architecture:
    """Return the options and values for layers of both types, or of one.

    Args:
        settings: the content of config.json.
        types: the type of each layer.
        ropes: the parameters of the rotation of each type.
    """
    window = settings["sliding_window"]
    length = settings["max_position_embeddings"]
    values = {kind: rotary_values(rope, context_length=length) for kind, rope in ropes.items()}
    # The model's own position is that of the local layers, if there are any.
    common = values[LOCAL if LOCAL in types else FULL]
    own: Settings = {f"model.position.{name}": value for name, value in common.items()}
    if {*types} == {LOCAL, FULL} and values[LOCAL] != values[FULL]:
        own["model.layers.full.position"] = _rotary_node(values[FULL])
    return window_architecture(types, window) | Architecture(values=own)


def describe_rotations_and_windows(model: GPT) -> Settings:
    """Return the settings of the windows, and of the rotation of each type of layers."""
    windows = describe_windows(model)
    types = windows["layer_types"]
    rotations: dict[str, Settings] = {}
    for kind, block in zip(types, blocks_of(model), strict=True):
        position = position_of(model, block)
        rotary = part_of(position, Rotary, key="model.position")
        rotations.setdefault(kind, describe_rotary(rotary))
    other = next(iter(rotations.values()))
    return {
        **windows,
        "rope_parameters": {each: rotations.get(each, other) for each in (FULL, LOCAL)},
    }


def _rotary_node(values: Settings) -> dict[str, Any]:
    """Return the configuration of a kind's own position."""
    return {
        "_target_": f"{Rotary.__module__}.{Rotary.__qualname__}",
        "dim": "${model.dim}",
        "num_heads": "${model.attention.num_heads}",
        "head_dim": "${model.attention.head_dim}",
        **values,
    }
