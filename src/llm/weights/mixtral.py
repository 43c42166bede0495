"""Mixtral's weights (Jiang et al. 2024): Mistral with a mixture of experts in each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from llm.weights.experts import expert_rules, experts_of
from llm.weights.huggingface import Architecture, Settings
from llm.weights.key_map import Rule
from llm.weights.llama import OURS, THEIRS, same
from llm.weights.mistral import MistralWeights

EXPERT = {"gate": "w1", "input": "w3", "output": "w2"}


@dataclass(frozen=True)
class MixtralWeights(MistralWeights):
    """Mixtral from a folder or the hub."""

    model_type: ClassVar[str] = "mixtral"
    title: ClassVar[str] = "Mixtral"
    their_class: ClassVar[str] = "MixtralForCausalLM"
    preset: ClassVar[str] = "mixtral"
    theta: ClassVar[float] = 1e6
    defaults: ClassVar[Mapping[str, Any]] = {
        **MistralWeights.defaults,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    expected: ClassVar[Mapping[str, Sequence[Any]]] = {
        **MistralWeights.expected,
        "router_jitter_noise": [0.0],
    }
    # The losses of the router, which model.feed_forward.balancing sets.
    without_effect: ClassVar[frozenset[str]] = MistralWeights.without_effect | {
        "output_router_logits",
        "router_aux_loss_coef",
    }

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return the architecture of config.json."""
        values = {
            "model.feed_forward.num_experts": settings["num_local_experts"],
            "model.feed_forward.top_k": settings["num_experts_per_tok"],
        }
        return super().architecture(settings) | Architecture(values=values)

    @classmethod
    def feed_forward_rules(cls, settings: Settings, *kinds: str) -> list[Rule]:
        """Return the rules for the router and the experts."""
        theirs = f"{THEIRS}block_sparse_moe."
        experts = {"ours": f"{OURS}feed_forward.experts.", "theirs": f"{theirs}experts."}
        return [
            *same({"feed_forward.router": "block_sparse_moe.gate"}, *kinds),
            *expert_rules(EXPERT, number=settings["num_local_experts"], **experts),
        ]

    @classmethod
    def describe(cls, model: nn.Module) -> Settings:
        """Return the config.json of the most similar model of this family."""
        settings = super().describe(model)
        experts = experts_of(model)
        return {
            **settings,
            "num_local_experts": len(experts.experts),
            "num_experts_per_tok": experts.top_k,
        }
