"""The weights of Gemma 3's language models (Gemma Team 2025): Gemma 2 with norms of queries and keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llm.models.gpt import GPT
from llm.weights.gemma2 import Gemma2Weights
from llm.weights.huggingface import Architecture, Settings
from llm.weights.key_map import Rule
from llm.weights.layer_windows import FULL, LOCAL
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

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return the architecture of config.json."""
        # Without the rotations, of which there are two: `layers` reads them.
        plain = {**settings, "rope_parameters": None, "rope_scaling": None}
        return super().architecture(plain) | cls.layers(settings)

    @classmethod
    def layers(cls, settings: Settings) -> Architecture:
        """Return the windows and rotations of the layers."""
        # Older files have the number of layers after which the pattern repeats, or nothing.
        every = settings.get("sliding_window_pattern") or 6
        number = settings["num_hidden_layers"]
        types = settings["layer_types"] or [
            LOCAL if layer % every else FULL for layer in range(1, number + 1)
        ]
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
    def describe_positions(cls, model: GPT) -> Settings:
        """Return the settings of the rotations and windows."""
        return describe_rotations_and_windows(model)
