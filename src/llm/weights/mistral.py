"""Mistral's weights (Jiang et al. 2023): Llama with a window in all layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from llm.models.gpt import GPT
from llm.weights.huggingface import Architecture, Settings
from llm.weights.layer_windows import LOCAL, describe_windows, window_architecture
from llm.weights.llama import LlamaWeights


@dataclass(frozen=True)
class MistralWeights(LlamaWeights):
    """Mistral from a folder or the hub, with or without a window."""

    model_type: ClassVar[str] = "mistral"
    title: ClassVar[str] = "Mistral"
    their_class: ClassVar[str] = "MistralForCausalLM"
    preset: ClassVar[str] = "mistral"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 8,
        "head_dim": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_parameters": None,
        "sliding_window": 4096,
    }
    expected: ClassVar[Mapping[str, Sequence[Any]]] = {"layer_types": [None]}

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return the architecture of config.json."""
        return super().architecture(settings) | window_architecture(
            [LOCAL], settings["sliding_window"]
        )

    @classmethod
    def describe_positions(cls, model: GPT) -> Settings:
        """Return the settings of the rotation and of the window."""
        window = describe_windows(model)["sliding_window"]
        return {**super().describe_positions(model), "sliding_window": window}
