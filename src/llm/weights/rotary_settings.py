"""Rotary positions in config.json, in both directions.

Hugging Face's library writes `rope_parameters` since version 5, one for each type of layers if they differ. Before, it
wrote `rope_theta` and `rope_scaling`.
"""

from collections.abc import Mapping
from typing import Any

from llm.config.errors import ConfigError
from llm.nn.positions import Rotary
from llm.nn.rotary_scaling import LinearScaling, Llama3Scaling, RotaryScaling, YaRNScaling
from llm.weights.config_types import is_of
from llm.weights.huggingface import Settings, supported

_LENGTH = {"context_length": "original_max_position_embeddings"}
# Scalings by their names in config.json: our class, and our arguments with their keys.
SCALINGS: dict[str, tuple[type[RotaryScaling], dict[str, str]]] = {
    "linear": (LinearScaling, {"factor": "factor"}),
    "llama3": (
        Llama3Scaling,
        {
            "factor": "factor",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
            **_LENGTH,
        },
    ),
    "yarn": (
        YaRNScaling,
        {"factor": "factor", "beta_fast": "beta_fast", "beta_slow": "beta_slow", **_LENGTH},
    ),
}
# Keys that a scaling must have besides its factor.
REQUIRED = {"llama3": ("low_freq_factor", "high_freq_factor")}
# What else a scaling may contain: the keys that say the same in another place, and the values that change nothing.
ELSEWHERE = ("rope_type", "type", "rope_theta")
WITHOUT_EFFECT = {
    "partial_rotary_factor": 1,
    "attention_factor": None,
    "mscale": None,
    "mscale_all_dim": None,
    "truncate": True,
}


def rope_of(settings: Settings, *, theta: float, layers: str | None = None) -> Settings:
    """Return the parameters of the rotation in config.json, in the form of version 5.

    Args:
        settings: the content of config.json.
        theta: the base if config.json has none.
        layers: the type of the layers, such as `full_attention`, if they differ.
    """
    given = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    own = given.get(layers) if layers is not None and layers in given else given
    base = {"rope_theta": settings.get("rope_theta") or theta}
    return base | {key: value for key, value in (own or {}).items() if value is not None}


def rotary_values(rope: Settings, *, context_length: int) -> Settings:
    """Return the arguments `theta` and `scaling` of `Rotary`.

    Args:
        rope: the parameters of the rotation, see `rope_of`.
        context_length: that of the model; the scalings take it for that of pretraining if they have none.

    Raises:
        ConfigError: the scaling is unknown, or has a part that ours does not have.
    """
    for key, value in rope.items():
        if key not in ("rope_type", "type", "truncate") and not is_of(value, float):
            raise ConfigError(
                f"weights.path: config.json: {key}={value!r:.60} of the rotation is not a number; restore the file"
            )
    kind = rope.get("rope_type", rope.get("type", "default"))
    choices = {"default": None, **SCALINGS}
    chosen = supported({"rope_type": kind}, "rope_type", choices, default="default")
    values: Settings = {"theta": float(rope["rope_theta"])}
    scaling, names = chosen or (None, {})
    _require_known(rope, {*names.values()})
    if scaling is None:
        return values
    if missing := [key for key in ("factor", *REQUIRED.get(kind, ())) if key not in rope]:
        raise ConfigError(
            f"weights.path: config.json: the rotary scaling {kind} has no {missing[0]}; restore the file"
        )
    given = rope | {"original_max_position_embeddings": _pretrained(rope, context_length)}
    arguments = {ours: given[theirs] for ours, theirs in names.items() if theirs in given}
    target = f"{scaling.__module__}.{scaling.__qualname__}"
    return {**values, "scaling": {"_target_": target, **arguments}}


def split_share(rope: Settings, *, default: Any) -> tuple[float, Settings]:
    """Return the share of a head's columns that rotate, and the other parameters.

    Args:
        rope: the parameters of the rotation, see `rope_of`.
        default: the share if they have none.

    Raises:
        ConfigError: it is not a number.
    """
    others = {**rope}
    share = others.pop("partial_rotary_factor", default)
    if not is_of(share, float):
        raise ConfigError(
            f"weights.path: config.json: partial_rotary_factor={share!r:.60} of the rotation is not a number; restore "
            "the file"
        )
    return share, others


def describe_rotary(position: Rotary) -> Settings:
    """Return the parameters of a rotation for config.json; a scaling that it cannot express counts as none."""
    rope: Settings = {"rope_type": "default", "rope_theta": position.theta}
    for kind, (scaling, names) in SCALINGS.items():
        if type(position.scaling) is scaling:
            rope |= {theirs: getattr(position.scaling, ours) for ours, theirs in names.items()}
            rope["rope_type"] = kind
    return rope


def older_keys(rope: Settings) -> Settings:
    """Return the same for versions of Hugging Face's library before 5."""
    scaling = None if rope["rope_type"] == "default" else rope
    return {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}


def _pretrained(rope: Mapping[str, Any], context_length: int) -> int:
    return rope.get("original_max_position_embeddings", context_length)


def _require_known(rope: Settings, known: set[str]) -> None:
    for key, value in rope.items():
        if key in known or key in ELSEWHERE or key == "original_max_position_embeddings":
            continue
        if key not in WITHOUT_EFFECT or value != WITHOUT_EFFECT[key]:
            raise ConfigError(
                f"weights.path: config.json: {key}={value} of the rotation is not supported; choose a model without it"
            )
