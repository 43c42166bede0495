"""Gemma 2's weights (Gemma Team 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from llm.models.gpt import GPT
from llm.nn.attention import Attention
from llm.weights.huggingface import Architecture, Settings
from llm.weights.layer_windows import describe_windows, layer_types, window_architecture
from llm.weights.llama import LlamaWeights
from llm.weights.model_parts import part_of, softcap_of


@dataclass(frozen=True)
class Gemma2Weights(LlamaWeights):
    """Gemma 2 from a folder or the hub."""

    model_type: ClassVar[str] = "gemma2"
    title: ClassVar[str] = "Gemma 2"
    their_class: ClassVar[str] = "Gemma2ForCausalLM"
    preset: ClassVar[str] = "gemma2"
    activation: ClassVar[str] = "hidden_activation"
    norms: ClassVar[Mapping[str, str]] = {
        "attention_norm": "input_layernorm",
        "attention_output_norm": "post_attention_layernorm",
        "feed_forward_norm": "pre_feedforward_layernorm",
        "feed_forward_output_norm": "post_feedforward_layernorm",
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_parameters": None,
        "attention_bias": False,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "layer_types": None,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    }
    expected: ClassVar[Mapping[str, Any]] = {"use_bidirectional_attention": [None, False]}

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return the architecture of config.json."""
        softcap, head_softcap = (
            settings[f"{name}_logit_softcapping"] for name in ("attn", "final")
        )
        scale = {"model.attention.score_dim": settings["query_pre_attn_scalar"]}
        return (
            super().architecture(cls.without_rotations(settings))
            | cls.layers(settings)
            | Architecture(values=scale)
            | _softcapped("kernel", key="model.attention.kernel", plain="fused", softcap=softcap)
            | _softcapped("head", key="model.head", plain="linear", softcap=head_softcap)
        )

    @classmethod
    def without_rotations(cls, settings: Settings) -> Settings:
        """Return the settings without the rotations that `layers` reads."""
        return settings

    @classmethod
    def layers(cls, settings: Settings) -> Architecture:
        """Return the windows of the layers."""
        types = layer_types(settings, lambda layer: layer % 2 == 0)
        return window_architecture(types, settings["sliding_window"])

    @classmethod
    def describe(cls, model: nn.Module) -> Settings:
        """Return the config.json of the most similar model of this family."""
        settings = super().describe(model)
        attention = part_of(model, Attention, key="model.attention")
        return {
            **settings,
            "query_pre_attn_scalar": attention.score_dim,
            "attn_logit_softcapping": softcap_of(attention.kernel),
            "final_logit_softcapping": getattr(
                part_of(model, GPT, key="model").head, "softcap", None
            ),
        }

    @classmethod
    def describe_positions(cls, model: GPT) -> Settings:
        """Return the settings of the rotation and the windows."""
        return {**super().describe_positions(model), **describe_windows(model)}


def _softcapped(group: str, *, key: str, plain: str, softcap: float | None) -> Architecture:
    """Return the option and the bound of a part with bounded scores or logits, or the part without a bound."""
    if softcap is None:
        return Architecture([f"model/{group}={plain}"])
    return Architecture([f"model/{group}=soft_capped"], {f"{key}.softcap": softcap})
