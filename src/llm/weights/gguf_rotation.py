"""Rotary positions in the values of a GGUF file, in both directions.

The factors of Llama 3's scaling are a tensor, `rope_freqs.weight`: each frequency is divided by its factor. The other
scalings are values. `rope_parameters` are those of config.json.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llm.config.errors import ConfigError
from llm.nn.rotary_scaling import Llama3Scaling
from llm.weights.layer_windows import FULL, LOCAL

Values = dict[str, Any]

FREQUENCIES = "rope_freqs.weight"
BASE, LOCAL_BASE = "rope.freq_base", "rope.freq_base_swa"
KIND, FACTOR = "rope.scaling.type", "rope.scaling.factor"
LENGTH = "rope.scaling.original_context_length"
FAST, SLOW = "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"
ROTATION = frozenset({BASE, LOCAL_BASE, KIND, FACTOR, LENGTH, FAST, SLOW})
# Llama 3's own numbers: the bounds of the ramp in turns, and the context of pretraining.
TURNS, CONTEXT = (1.0, 4.0), 8192


def describe_rope(rope: Mapping[str, Any], local: Mapping[str, Any] | None = None) -> Values:
    """Return the values for a rotation.

    Args:
        rope: the parameters of config.json, of the full layers if the local ones have others.
        local: those of the local layers.

    Raises:
        ConfigError: the local layers have a scaling, which llama.cpp does not apply.
    """
    values: Values = {BASE: float(rope["rope_theta"])}
    kind = rope["rope_type"]
    if kind == "llama3":
        # llama.cpp does not use it; it makes the scaling known to whoever reads the file.
        values[LENGTH] = int(rope["original_max_position_embeddings"])
    elif kind != "default":
        values |= {KIND: kind, FACTOR: float(rope["factor"])}
    if kind == "yarn":
        values[LENGTH] = int(rope["original_max_position_embeddings"])
        values |= {FAST: float(rope["beta_fast"]), SLOW: float(rope["beta_slow"])}
    if local is not None:
        if local["rope_type"] != "default":
            raise ConfigError(
                f"model.position.scaling: {local['rope_type']} in layers with a window is not what llama.cpp computes; "
                "export format=folder"
            )
        values[LOCAL_BASE] = float(local["rope_theta"])
    return values


def frequency_factors(rope: Mapping[str, Any], *, head_dim: int) -> Float[Tensor, "pairs"] | None:
    """Return what the frequencies are divided by; None for a scaling that values describe."""
    if rope["rope_type"] != "llama3":
        return None
    scaling = Llama3Scaling(
        rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        context_length=rope["original_max_position_embeddings"],
    )
    return _factors(scaling, theta=rope["rope_theta"], head_dim=head_dim)


def read_rope(values: Mapping[str, Any], factors: Float[Tensor, "pairs"] | None) -> Values:
    """Return the parameters of config.json.

    Args:
        values: the values of the architecture, without its name.
        factors: the tensor of the frequencies' factors, if the file has one.

    Raises:
        ConfigError: the scaling is unknown.
    """
    theta = values.get(BASE, 1e4)
    if factors is not None:
        return {"rope_theta": theta, **_llama3(factors, values, theta=theta)}
    kind = values.get(KIND, "none")
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if kind not in ("linear", "yarn"):
        raise ConfigError(
            f"weights.path: the scaling {kind!r:.60} of the rotation is not supported, only linear and yarn"
        )
    rope: Values = {"rope_type": kind, "rope_theta": theta, "factor": values.get(FACTOR, 1.0)}
    if kind == "yarn":
        rope |= {"beta_fast": values.get(FAST, 32.0), "beta_slow": values.get(SLOW, 1.0)}
        if LENGTH in values:
            rope["original_max_position_embeddings"] = values[LENGTH]
    return rope


def read_ropes(values: Mapping[str, Any], *, local_theta: float) -> Values:
    """Return the parameters of config.json for full and for local layers.

    Args:
        values: see `read_rope`.
        local_theta: the base of the local layers if the file has none.
    """
    local = {"rope_type": "default", "rope_theta": values.get(LOCAL_BASE, local_theta)}
    return {FULL: read_rope(values, None), LOCAL: local}


def _factors(scaling: Llama3Scaling, *, theta: float, head_dim: int) -> Float[Tensor, "pairs"]:
    powers = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = float(theta) ** -powers
    return (frequencies / scaling(frequencies)).float()


def _llama3(factors: Float[Tensor, "pairs"], values: Mapping[str, Any], *, theta: float) -> Values:
    """Return the parameters of Llama 3's scaling that give these factors.

    The file has only the factors. All published models use the same bounds of the ramp.
    """
    low, high = TURNS
    length, factor = values.get(LENGTH, CONTEXT), float(str(factors.max().numpy()))
    scaling = Llama3Scaling(
        factor, low_freq_factor=low, high_freq_factor=high, context_length=length
    )
    expected = _factors(scaling, theta=theta, head_dim=2 * len(factors))
    if not torch.allclose(factors, expected, rtol=1e-4):
        raise ConfigError(
            f"weights.path: {FREQUENCIES} has other factors than Llama 3's scaling by {factor:g} from a context of "
            f"{length}; give the folder that the file was made from"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }
