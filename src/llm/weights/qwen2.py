"""Qwen2's and Qwen2.5's weights (Yang et al. 2024): Llama with biases for queries, keys and values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llm.models.gpt import GPT
from llm.weights.huggingface import Architecture, Settings
from llm.weights.layer_windows import describe_windows, layer_types, window_architecture
from llm.weights.llama import LlamaWeights


@dataclass(frozen=True)
class Qwen2Weights(LlamaWeights):
    """Qwen2 and Qwen2.5 from a folder or the hub."""

    model_type: ClassVar[str] = "qwen2"
    title: ClassVar[str] = "Qwen2"
    their_class: ClassVar[str] = "Qwen2ForCausalLM"
    preset: ClassVar[str] = "qwen2"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 32,
        "head_dim": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_parameters": None,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
    }

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return the architecture of config.json."""
        size = settings["sliding_window"] if settings["use_sliding_window"] else None
        types = layer_types(settings, lambda layer: layer >= settings["max_window_layers"])
        return super().architecture(settings) | window_architecture(types, size)

    @classmethod
    def biases(cls, settings: Settings) -> tuple[bool, bool, bool]:
        """Return that only queries, keys and values have biases."""
        return True, False, False

    @classmethod
    def describe_positions(cls, model: GPT) -> Settings:
        """Return the settings of the rotation and of the windows."""
        windows = describe_windows(model)
        has_windows = windows["sliding_window"] is not None
        return {
            **super().describe_positions(model),
            **windows,
            "use_sliding_window": has_windows,
            "max_window_layers": len(windows["layer_types"]),
        }
