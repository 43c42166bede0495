"""SmolLM3's weights (Bakouch et al. 2025): Llama without positions in every fourth layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from llm.config.errors import ConfigError
from llm.models.gpt import GPT
from llm.nn.positions import NoPosition
from llm.weights.huggingface import Architecture, Settings
from llm.weights.layer_windows import pattern_of
from llm.weights.llama import LlamaWeights
from llm.weights.model_parts import blocks_of, position_of


@dataclass(frozen=True)
class SmolLM3Weights(LlamaWeights):
    """SmolLM3 from a folder or the hub."""

    model_type: ClassVar[str] = "smollm3"
    title: ClassVar[str] = "SmolLM3"
    their_class: ClassVar[str] = "SmolLM3ForCausalLM"
    preset: ClassVar[str] = "smollm3"
    theta: ClassVar[float] = 2e6
    defaults: ClassVar[Mapping[str, Any]] = {
        **LlamaWeights.defaults,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    }
    expected: ClassVar[Mapping[str, Sequence[Any]]] = {"use_sliding_window": [False]}
    # The windows that use_sliding_window turns on.
    without_effect: ClassVar[frozenset[str]] = LlamaWeights.without_effect | {
        "sliding_window",
        "layer_types",
    }

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return the architecture of config.json."""
        number, every = settings["num_hidden_layers"], settings["no_rope_layer_interval"]
        # Despite its name, no_rope_layers has 1 for layers with positions.
        rotate = settings["no_rope_layers"] or [(n + 1) % every for n in range(number)]
        if len(rotate) < number or any(type(each) is not int for each in rotate):
            raise ConfigError(
                f"weights.path: config.json: no_rope_layers={rotate!r:.60} is not an integer for each of {number} "
                "layers; restore the file"
            )
        kinds = ["rotary" if each else "nope" for each in rotate[:number]]
        if {*kinds} == {"nope"}:
            raise ConfigError(
                "weights.path: config.json: no_rope_layers leaves no layer with positions, which is not supported"
            )
        return super().architecture(settings) | _layers(kinds)

    @classmethod
    def describe_positions(cls, model: GPT) -> Settings:
        """Return the settings of the rotation, and which layers rotate."""
        positions = [position_of(model, block) for block in blocks_of(model)]
        rotate = [int(not isinstance(position, NoPosition)) for position in positions]
        return {**super().describe_positions(model), "no_rope_layers": rotate}


def _layers(kinds: list[str]) -> Architecture:
    if {*kinds} == {"rotary"}:
        return Architecture(["model/layers=uniform"], {})
    return Architecture(["model/layers=nope"], {"model.pattern": pattern_of(kinds)})
