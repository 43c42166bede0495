"""OLMo 2's weights (OLMo Team 2024): Llama with norms of outputs, and of the queries and keys of all heads together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llm.weights.huggingface import Architecture, Settings
from llm.weights.key_map import Rule
from llm.weights.llama import QK_NORM, LlamaWeights, same


@dataclass(frozen=True)
class OLMo2Weights(LlamaWeights):
    """OLMo 2 from a folder or the hub."""

    model_type: ClassVar[str] = "olmo2"
    title: ClassVar[str] = "OLMo 2"
    their_class: ClassVar[str] = "Olmo2ForCausalLM"
    preset: ClassVar[str] = "olmo2"
    norms: ClassVar[Mapping[str, str]] = {
        "attention_norm": "post_attention_layernorm",
        "feed_forward_norm": "post_feedforward_layernorm",
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_parameters": None,
        "attention_bias": False,
    }

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return the architecture of config.json."""
        epsilon = {"model.attention.qk_norm.eps": settings["rms_norm_eps"]}
        return super().architecture(settings) | Architecture(values=epsilon)

    @classmethod
    def rules(cls, settings: Settings) -> list[Rule]:
        """Return the rules for all tensors."""
        norms = {f"{ours}.norm": theirs for ours, theirs in QK_NORM.items()}
        return [*super().rules(settings), *same(norms, "weight")]
