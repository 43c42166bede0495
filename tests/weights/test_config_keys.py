"""Each key of config.json is read, without effect, or refused unless it has its default."""

import copy
import json
from dataclasses import fields
from typing import Any

import pytest
import torch
from published_families import SIZES, TOKENS, VARIANTS, Family
from transformers import AutoConfig, AutoModelForCausalLM

from llm.config.errors import ConfigError
from llm.weights import huggingface
from llm.weights.families import DECODERS, FAMILIES
from llm.weights.huggingface import Architecture

TYPES = list(FAMILIES)
# Keys that differ in each file, and another value of each that changes the architecture.
OTHERS: dict[str, Any] = {
    "hidden_act": "relu",
    "hidden_activation": "relu",
    "activation_function": "relu",
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "no_rope_layers": [0, 1, 1, 1],
    "no_rope_layer_interval": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
    "sliding_window": 5,
    "max_window_layers": 1,
    "head_dim": 20,
    "n_inner": 20,
    "attn_logit_softcapping": 7.0,
    "final_logit_softcapping": 7.0,
}
# Types of layers of a family, if they are not those above.
LAYER_TYPES = {"qwen3_next": ["full_attention", "linear_attention"] * 2}
# Keys that have an effect only beside others.
BESIDE: dict[str, dict[str, Any]] = {
    "sliding_window": {"use_sliding_window": True, "max_window_layers": 2},
    "max_window_layers": {"use_sliding_window": True, "sliding_window": 6},
    "use_sliding_window": {"max_window_layers": 2},
    "layer_types": {"use_sliding_window": True, "sliding_window": 6},
}


def settings_of(model_type: str) -> dict[str, Any]:
    """Return the settings of a small model."""
    family = FAMILIES[model_type]
    sizes = dict.fromkeys(family.sizes.values(), 8) | SIZES.get(model_type, SIZES["qwen3"])
    return {**family.defaults, **sizes, "vocab_size": 257}


def changed(key: str, value: Any) -> Any:
    """Return another value of a key."""
    if key in OTHERS:
        return OTHERS[key]
    if isinstance(value, bool):
        return not value
    return 2 * value if isinstance(value, int | float) else 3


@pytest.mark.parametrize("model_type", TYPES)
def test_every_field_of_the_class_is_classified(model_type):
    family = FAMILIES[model_type]
    known = {
        *(*family.defaults, *family.sizes.values(), *family.expected, *family.without_effect),
        *(*huggingface.EXPECTED, *huggingface.WITHOUT_EFFECT),
    }
    theirs = type(AutoConfig.for_model(model_type))
    names = {each.name for each in fields(theirs)}
    assert names - known == set()


@pytest.mark.parametrize("model_type", TYPES)
def test_defaults_are_those_of_the_class(model_type):
    family = FAMILIES[model_type]
    theirs = type(AutoConfig.for_model(model_type))
    defaults = {each.name: each.default for each in fields(theirs)}
    for name, value in family.defaults.items():
        assert defaults.get(name) == value, name
    for name, values in family.expected.items():
        own = defaults.get(name)
        assert (list(own) if isinstance(own, tuple) else own) in [*values, None], name
    if (own_theta := getattr(family, "theta", None)) is not None:
        theta = getattr(theirs, "default_theta", 1e4)
        assert own_theta == (theta["global"] if isinstance(theta, dict) else theta)


def described(family: Any, settings: dict[str, Any]) -> Any:
    """Return what a family makes of a config.json: the overrides, and the rules for the tensors."""
    architecture: Architecture = family.architecture(settings)
    return sorted(architecture.options), {**architecture.values}, family.key_map(settings)


@pytest.mark.parametrize("model_type", TYPES)
def test_keys_that_are_read_change_the_model(model_type):
    family = FAMILIES[model_type]
    for key in [*family.defaults, *family.sizes.values()]:
        settings = settings_of(model_type)
        settings |= {k: v for k, v in BESIDE.get(key, {}).items() if k in family.defaults}
        if model_type == "smollm3" and key == "no_rope_layer_interval":
            settings["no_rope_layers"] = None
        before = described(family, settings)
        other = changed(key, settings[key])
        if key == "layer_types":
            other = LAYER_TYPES.get(model_type, other)
        assert described(family, settings | {key: other}) != before, key


@pytest.mark.parametrize("model_type", TYPES)
def test_other_values_of_expected_keys_are_refused(model_type, tmp_path):
    family = FAMILIES[model_type]
    for key in [*family.expected, *huggingface.EXPECTED]:
        settings = settings_of(model_type) | {"model_type": model_type, key: "other"}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        with pytest.raises(ConfigError, match=f"config.json: {key}=other is not supported, only "):
            _ = family(str(tmp_path)).settings


# Values of keys that do not change what a model computes, other than their defaults.
IDLE = {
    "initializer_range": 0.5,
    "use_cache": False,
    "pretraining_tp": 2,
    "chunk_size": 4,
    "attention_dropout": 0.5,
    "hidden_dropout": 0.5,
    "classifier_dropout": 0.5,
    "resid_pdrop": 0.5,
    "embd_pdrop": 0.5,
    "attn_pdrop": 0.5,
    "summary_type": "mean",
    "summary_use_proj": False,
    "summary_activation": "tanh",
    "summary_first_dropout": 0.5,
    "summary_proj_to_labels": False,
    "reorder_and_upcast_attn": True,
    "output_router_logits": True,
    "router_aux_loss_coef": 9.0,
    "rescale_prenorm_residual": True,
    "time_step_min": 0.1,
    "time_step_max": 0.2,
    "time_step_floor": 0.1,
    "time_step_rank": 3,
}


@torch.no_grad()
@pytest.mark.parametrize("name", [family.model_type.removesuffix("_text") for family in DECODERS])
def test_keys_without_effect_change_nothing_in_transformers(name):
    family: Family = VARIANTS[name]
    theirs = family.make()
    idle = FAMILIES[family.model_type].without_effect & {*IDLE}
    config = copy.deepcopy(theirs.config)
    for key in idle:
        setattr(config, key, IDLE[key])
    other = AutoModelForCausalLM.from_config(config).eval()
    other.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(other(TOKENS).logits, theirs(TOKENS).logits, rtol=0, atol=1e-3)
