"""OLMo 3's weights (OLMo Team 2025): OLMo 2 with windows in three of four layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llm.models.gpt import GPT
from llm.weights.huggingface import Architecture, Settings
from llm.weights.layer_windows import FULL, LOCAL, layer_types
from llm.weights.olmo2 import OLMo2Weights
from llm.weights.rotary_settings import rope_of
from llm.weights.two_rotations import describe_rotations_and_windows, rotations_and_windows


@dataclass(frozen=True)
class OLMo3Weights(OLMo2Weights):
    """OLMo 3 from a folder or the hub; a scaling of the rotation may be that of the full layers alone."""

    model_type: ClassVar[str] = "olmo3"
    title: ClassVar[str] = "OLMo 3"
    their_class: ClassVar[str] = "Olmo3ForCausalLM"
    preset: ClassVar[str] = "olmo3"
    theta: ClassVar[float] = 5e5
    defaults: ClassVar[Mapping[str, Any]] = {
        **OLMo2Weights.defaults,
        "sliding_window": 4096,
        "layer_types": None,
    }

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return the architecture of config.json."""
        types = layer_types(settings, lambda layer: layer % 4 != 3)
        ropes = {FULL: rope_of(settings, theta=cls.theta, layers=FULL)}
        # Before version 5, the scaling was that of the full layers.
        local = {**settings, "rope_scaling": None}
        ropes[LOCAL] = rope_of(local, theta=cls.theta, layers=LOCAL)
        plain = super().architecture({**settings, "rope_parameters": None, "rope_scaling": None})
        return plain | rotations_and_windows(settings, types=types, ropes=ropes)

    @classmethod
    def describe_positions(cls, model: GPT) -> Settings:
        """Return the settings of the rotations and windows."""
        return describe_rotations_and_windows(model)
