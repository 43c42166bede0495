"""Windows of layers in config.json, in both directions: which layers have one, and its size."""

from collections.abc import Callable, Sequence
from itertools import groupby

from llm.config.errors import ConfigError
from llm.models.gpt import GPT
from llm.weights.huggingface import Architecture, Settings
from llm.weights.model_parts import blocks_of, window_of

# Types of layers in config.json, and our kinds.
FULL, LOCAL = "full_attention", "sliding_attention"
KINDS = {FULL: "full", LOCAL: "local"}


def layer_types(
    settings: Settings, default: Callable[[int], bool], *, other: str = LOCAL
) -> list[str]:
    """Return the type of each layer.

    Args:
        settings: the content of config.json.
        default: whether a layer, counted from 0, is of the other type if there is no `layer_types`.
        other: the type besides full attention.

    Raises:
        ConfigError: there is not one known type for each layer.
    """
    number, given = settings["num_hidden_layers"], settings["layer_types"]
    if given is None:
        return [other if default(layer) else FULL for layer in range(number)]
    if len(given) != number or any(each not in (FULL, other) for each in given):
        raise ConfigError(
            f"weights.path: config.json: layer_types={given!r:.60} is not {FULL} or {other} for each of {number} "
            "layers; restore the file"
        )
    return given


def window_architecture(types: Sequence[str], size: int | None) -> Architecture:
    """Return the options and values for layers of these types.

    Args:
        types: the type of each layer.
        size: number of keys that a query of a local layer attends to, its own included; None means all.
    """
    if size is None or LOCAL not in types:
        return Architecture(["model/mask=causal", "model/layers=uniform"], {})
    if FULL not in types:
        uniform = ["model/mask=sliding_window", "model/layers=uniform"]
        return Architecture(uniform, {"model.mask.size": size})
    return Architecture(
        ["model/mask=causal", "model/layers=local_global"],
        {
            "model.layers.local.mask.size": size,
            "model.pattern": pattern_of([KINDS[each] for each in types]),
        },
    )


def describe_windows(model: GPT) -> Settings:
    """Return the type of each layer, and the size of the windows; None without any."""
    sizes = [window_of(model, block) for block in blocks_of(model)]
    return {
        "layer_types": [FULL if size is None else LOCAL for size in sizes],
        "sliding_window": next((size for size in sizes if size is not None), None),
    }


def pattern_of(kinds: Sequence[str]) -> list[str]:
    """Return the shortest pattern that repeats to these kinds, such as `[5*local, full]`."""
    length = next(
        n
        for n in range(1, len(kinds) + 1)
        if all(kind == kinds[index % n] for index, kind in enumerate(kinds))
    )
    runs = [(kind, len([*run])) for kind, run in groupby(kinds[:length])]
    return [kind if count == 1 else f"{count}*{kind}" for kind, count in runs]
