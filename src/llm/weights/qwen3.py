"""Qwen3's weights (Yang et al. 2025): Llama with a norm of each head's queries and keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llm.weights.huggingface import Architecture, Settings
from llm.weights.key_map import Rule
from llm.weights.llama import QK_NORM, same
from llm.weights.qwen2 import Qwen2Weights


@dataclass(frozen=True)
class Qwen3Weights(Qwen2Weights):
    """Qwen3 from a folder or the hub."""

    model_type: ClassVar[str] = "qwen3"
    title: ClassVar[str] = "Qwen3"
    their_class: ClassVar[str] = "Qwen3ForCausalLM"
    preset: ClassVar[str] = "qwen3"
    defaults: ClassVar[Mapping[str, Any]] = {
        **Qwen2Weights.defaults,
        "head_dim": 128,
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
        return [*super().rules(settings), *same(QK_NORM, "weight")]

    @classmethod
    def biases(cls, settings: Settings) -> tuple[bool, bool, bool]:
        """Return whether attention has biases; feed-forward layers have none."""
        return settings["attention_bias"], settings["attention_bias"], False
