"""The weights of Qwen3's mixtures of experts (Yang et al. 2025)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from llm.nn.mixture_of_experts import MixtureOfExperts
from llm.weights.experts import expert_rules, experts_of
from llm.weights.huggingface import Architecture, Settings
from llm.weights.key_map import Rule
from llm.weights.llama import OURS, THEIRS, same
from llm.weights.qwen3 import Qwen3Weights

EXPERT = {"gate": "gate_proj", "input": "up_proj", "output": "down_proj"}


@dataclass(frozen=True)
class Qwen3MoEWeights(Qwen3Weights):
    """Qwen3's mixtures of experts from a folder or the hub, with experts in every layer."""

    model_type: ClassVar[str] = "qwen3_moe"
    title: ClassVar[str] = "Qwen3 with experts"
    their_class: ClassVar[str] = "Qwen3MoeForCausalLM"
    preset: ClassVar[str] = "qwen3_moe"
    sizes: ClassVar[Mapping[str, str]] = {
        **Qwen3Weights.sizes,
        "model.feed_forward.hidden_dim": "moe_intermediate_size",
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **{
            key: value
            for key, value in Qwen3Weights.defaults.items()
            if key not in ("layer_types", "max_window_layers")
        },
        "num_key_value_heads": 4,
        "head_dim": None,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    }
    expected: ClassVar[Mapping[str, Sequence[Any]]] = {
        "decoder_sparse_step": [1],
        "mlp_only_layers": [None, []],
    }
    # intermediate_size is that of layers without experts; the others are the losses of the router.
    without_effect: ClassVar[frozenset[str]] = Qwen3Weights.without_effect | {
        "intermediate_size",
        "output_router_logits",
        "router_aux_loss_coef",
    }

    @classmethod
    def number(cls, settings: Settings) -> int:
        """Return the number of experts; version 5 of Hugging Face's library renames its key."""
        return settings.get("num_local_experts") or settings["num_experts"]

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return the architecture of config.json."""
        # A window is that of all layers.
        windows = {"layer_types": None, "max_window_layers": 0}
        values = {
            "model.feed_forward.num_experts": cls.number(settings),
            "model.feed_forward.top_k": settings["num_experts_per_tok"],
            "model.feed_forward.normalize": settings["norm_topk_prob"],
        }
        return super().architecture({**settings, **windows}) | Architecture(values=values)

    @classmethod
    def feed_forward_rules(cls, settings: Settings, *kinds: str) -> list[Rule]:
        """Return the rules for the router and the experts."""
        experts = {"ours": f"{OURS}feed_forward.experts.", "theirs": f"{THEIRS}mlp.experts."}
        return [
            *same({"feed_forward.router": "mlp.gate"}, *kinds),
            *expert_rules(EXPERT, number=cls.number(settings), **experts),
        ]

    @classmethod
    def describe(cls, model: nn.Module) -> Settings:
        """Return the config.json of the most similar model of this family."""
        return {**super().describe(model), **describe_experts(experts_of(model))}


def describe_experts(experts: MixtureOfExperts) -> Settings:
    """Return the settings of a mixture of experts."""
    return {
        "num_experts": len(experts.experts),
        "num_experts_per_tok": experts.top_k,
        "norm_topk_prob": experts.normalize,
    }
