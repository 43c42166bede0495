"""Types of the values in config.json, which may be a stranger's: no other one reaches a model or a configuration."""

import math
from collections.abc import Mapping
from typing import Any

from llm.config.errors import ConfigError

MOST = 2**31 - 1
MOST_EXPERTS = 2**14
KINDS = {
    bool: "true or false",
    int: f"an integer from 1 to {MOST:,}",
    float: "a number",
    str: "a string",
    dict: "an object",
    list: "a list",
}
# Keys whose default does not tell their type.
TYPES: dict[str, type] = {
    **dict.fromkeys(("rope_parameters", "rope_scaling"), dict),
    **dict.fromkeys(("layer_types", "no_rope_layers"), list),
    **dict.fromkeys(("head_dim", "num_key_value_heads", "n_inner", "sliding_window"), int),
    **dict.fromkeys(("sliding_window_pattern", "full_attention_interval"), int),
    **dict.fromkeys(("num_experts", "num_local_experts"), int),
    **dict.fromkeys(("final_logit_softcapping", "attn_logit_softcapping"), float),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq", "rotary_emb_base"), float),
    **dict.fromkeys(("rotary_pct", "partial_rotary_factor"), float),
}
# Those that may be null although their default is not.
NULLABLE = (
    "sliding_window",
    "num_key_value_heads",
    "final_logit_softcapping",
    "attn_logit_softcapping",
)


def require_types(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Require that the values of all keys that may be read have their type.

    Args:
        settings: the content of config.json.
        defaults: the keys that a family reads, and their defaults.

    Raises:
        ConfigError: a value has another type.
    """
    for key in (*defaults, *TYPES):
        if key not in settings:
            continue
        value = settings[key]
        if value is None and (key in NULLABLE or defaults.get(key) is None):
            continue
        kind = TYPES.get(key, type(defaults.get(key)))
        if not is_of(value, kind):
            raise ConfigError(
                f"weights.path: config.json: {key}={value!r:.60} is not {KINDS[kind]}; restore the file"
            )
    for key in ("num_experts", "num_local_experts"):
        if settings.get(key, 0) > MOST_EXPERTS:
            raise ConfigError(
                f"weights.path: config.json: {key}={settings[key]} is more than {MOST_EXPERTS:,}; restore the file"
            )


def is_of(value: Any, kind: type) -> bool:
    """Return whether a value has a type; an integer is a number too, and a truth value is none."""
    if kind is int:
        return type(value) is int and 1 <= value <= MOST
    if kind is float:
        return type(value) in (int, float) and abs(value) <= MOST and math.isfinite(value)
    return type(value) is kind
