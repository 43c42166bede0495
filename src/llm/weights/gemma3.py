"""The weights of Gemma 3's language models (Gemma Team 2025): Gemma 2 with norms of queries and keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from llm.models.gpt import GPT
from llm.weights.gemma2 import Gemma2Weights
from llm.weights.huggingface import Architecture, Settings
from llm.weights.key_map import Rule
from llm.weights.layer_windows import FULL, LOCAL, layer_types
from llm.weights.llama import QK_NORM, same
from llm.weights.rotary_settings import rope_of
from llm.weights.two_rotations import describe_rotations_and_windows, rotations_and_windows

LOCAL_THETA = 1e4


@dataclass(frozen=True)
class Gemma3Weights(Gemma2Weights):
    """Gemma 3 for text alone (270M, 1B) from a folder or the hub."""

    model_type: ClassVar[str] = "gemma3_text"
    title: ClassVar[str] = "Gemma 3"
    their_class: ClassVar[str] = "Gemma3ForCausalLM"
    preset: ClassVar[str] = "gemma3"
    theta: ClassVar[float] = 1e6
    defaults: ClassVar[Mapping[str, Any]] = {
        **Gemma2Weights.defaults,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
    }
    # transformers has the second key, and does not apply it.
    expected: ClassVar[Mapping[str, Sequence[Any]]] = {
        **Gemma2Weights.expected,
        "attn_logit_softcapping": [None],
    }

    @classmethod
    def without_rotations(cls, settings: Settings) -> Settings:
        """Return the settings without the two rotations, which `layers` reads."""
        return {**settings, "rope_parameters": None, "rope_scaling": None}

    @classmethod
    def layers(cls, settings: Settings) -> Architecture:
        """Return the windows and rotations of the layers."""
        # Older files have the number of layers after which the pattern repeats, or nothing.
        every = settings.get("sliding_window_pattern") or 6
        types = layer_types(settings, lambda layer: (layer + 1) % every != 0)
        local = {**settings, "rope_scaling": None, "rope_theta": None}
        local_theta = settings.get("rope_local_base_freq") or LOCAL_THETA
        ropes = {
            FULL: rope_of(settings, theta=cls.theta, layers=FULL),
            LOCAL: rope_of(local, theta=local_theta, layers=LOCAL),
        }
        return rotations_and_windows(settings, types=types, ropes=ropes)

    @classmethod
    def rules(cls, settings: Settings) -> list[Rule]:
        """Return the rules for all tensors."""
        return [*super().rules(settings), *same(QK_NORM, "weight")]

    @classmethod
    def describe(cls, model: nn.Module) -> Settings:
        """Return the config.json of the most similar model of this family, whose scores have no bound."""
        return {**super().describe(model), "attn_logit_softcapping": None}

    @classmethod
    def describe_positions(cls, model: GPT) -> Settings:
        """Return the settings of the rotations and windows."""
        return describe_rotations_and_windows(model)
