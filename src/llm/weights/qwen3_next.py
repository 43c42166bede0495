"""Qwen3-Next's weights (Qwen Team 2025): Gated DeltaNet, gated attention, and experts in each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from llm.config.errors import ConfigError
from llm.models.gpt import GPT
from llm.nn.attention import Attention
from llm.nn.gated_deltanet import GatedDeltaNet
from llm.nn.mixture_of_experts import MixtureOfExperts
from llm.nn.norms import ZeroCenteredRMSNorm
from llm.nn.positions import Rotary
from llm.nn.token_gate import TokenGate
from llm.weights.huggingface import Architecture, Settings
from llm.weights.key_map import Concatenated, KeyMap, Rule
from llm.weights.layer_windows import FULL, layer_types, pattern_of
from llm.weights.llama import (
    GATED,
    OURS,
    QK_NORM,
    SIZES,
    THEIRS,
    LlamaWeights,
    same,
)
from llm.weights.mamba2 import Filters
from llm.weights.model_parts import blocks_of, hidden_dim_of, part_of
from llm.weights.packed_rows import PackedRows
from llm.weights.qwen3_moe import Qwen3MoEWeights, describe_experts
from llm.weights.rotary_settings import describe_rotary, older_keys, rope_of, split_share

LINEAR = "linear_attention"
# Types of layers in config.json, and our kinds.
KINDS = {LINEAR: "gated_deltanet", FULL: "attention"}
# Our keys of Gated DeltaNet, and those of config.json.
DELTA = {
    "num_heads": "linear_num_value_heads",
    "num_key_heads": "linear_num_key_heads",
    "head_dim": "linear_key_head_dim",
    "value_head_dim": "linear_value_head_dim",
    "kernel_size": "linear_conv_kernel_dim",
}
SHARE = 0.25  # of a head's columns that rotate
_QUERY = f"{THEIRS}self_attn.q_proj"
_DELTA = f"{THEIRS}linear_attn."
_PROJECTIONS, _RATES = f"{_DELTA}in_proj_qkvz.weight", f"{_DELTA}in_proj_ba.weight"
# The expert that computes every token.
SHARED = {
    "feed_forward.shared.gate": "mlp.shared_expert_gate",
    **{
        ours.replace(".", ".shared.layer."): theirs.replace(".", ".shared_expert.")
        for ours, theirs in GATED.items()
    },
}


@dataclass(frozen=True)
class Qwen3NextWeights(LlamaWeights):
    """Qwen3-Next from a folder or the hub, with experts in every layer and attention in at least one."""

    model_type: ClassVar[str] = "qwen3_next"
    title: ClassVar[str] = "Qwen3-Next"
    classes: ClassVar[Sequence[type[nn.Module]]] = (
        *(ZeroCenteredRMSNorm, Rotary, Attention, GatedDeltaNet, MixtureOfExperts, TokenGate),
    )
    their_class: ClassVar[str] = "Qwen3NextForCausalLM"
    preset: ClassVar[str] = "qwen3_next"
    sizes: ClassVar[Mapping[str, str]] = {
        **SIZES,
        "model.feed_forward.hidden_dim": "moe_intermediate_size",
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 2,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_parameters": None,
        "attention_bias": False,
        "layer_types": None,
        "linear_num_value_heads": 32,
        "linear_num_key_heads": 16,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "norm_topk_prob": True,
        "shared_expert_intermediate_size": 512,
    }
    # The activation is also that of the convolution in Gated DeltaNet, where ours is always SiLU.
    expected: ClassVar[Mapping[str, Sequence[Any]]] = {
        **Qwen3MoEWeights.expected,
        "hidden_act": ["silu"],
    }
    without_effect: ClassVar[frozenset[str]] = Qwen3MoEWeights.without_effect

    @classmethod
    def types(cls, settings: Settings) -> list[str]:
        """Return the type of each layer.

        Raises:
            ConfigError: a layer has no known type, or none has attention.
        """
        every = settings.get("full_attention_interval") or 4
        types = layer_types(settings, lambda layer: (layer + 1) % every != 0, other=LINEAR)
        if FULL not in types:
            raise ConfigError(
                f"weights.path: config.json: layer_types leaves no layer with {FULL}, which is not supported"
            )
        return types

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return the architecture of config.json."""
        share = settings.get("partial_rotary_factor", SHARE)
        share, rope = split_share(
            rope_of(settings, theta=cls.theta), default=1.0 if share is None else share
        )
        values = {
            "model.position.fraction": share,
            "model.feed_forward.num_experts": Qwen3MoEWeights.number(settings),
            "model.feed_forward.top_k": settings["num_experts_per_tok"],
            "model.feed_forward.normalize": settings["norm_topk_prob"],
            "model.feed_forward.shared.layer.hidden_dim": settings[
                "shared_expert_intermediate_size"
            ],
        }
        plain = super().architecture({**settings, "rope_parameters": rope})
        return plain | Architecture(values=values) | cls.layers(settings)

    @classmethod
    def layers(cls, settings: Settings) -> Architecture:
        """Return the kinds of the layers."""
        types = cls.types(settings)
        if LINEAR not in types:
            return Architecture(["model/layers=uniform"])
        own = "model.layers.gated_deltanet.attention."
        values = {f"{own}{ours}": settings[theirs] for ours, theirs in DELTA.items()}
        pattern = pattern_of([KINDS[each] for each in types])
        return Architecture(values={**values, "model.pattern": pattern})

    @classmethod
    def key_map(cls, settings: Settings) -> KeyMap:
        """Return the rules for the tensors; layers that predict further tokens (mtp) are left out."""
        return replace(
            super().key_map(settings), packed=tuple(cls.packed(settings)), left_out=("mtp.",)
        )

    @classmethod
    def packed(cls, settings: Settings) -> list[PackedRows]:
        """Return the tensors that contain several of ours: the gate is beside the queries, for example."""
        heads, width = settings["num_attention_heads"], settings["head_dim"]
        rows = {"query": width, "gate": width}
        # A key head with the value heads that it serves.
        groups = settings["linear_num_key_heads"]
        values = settings["linear_num_value_heads"] // groups
        keys, columns = settings["linear_key_head_dim"], values * settings["linear_value_head_dim"]
        projections = {"query": keys, "key": keys, "value": columns, "gate": columns}
        packed = {
            FULL: [PackedRows(f"{_QUERY}.{kind}", heads, rows) for kind in _kinds(settings)],
            LINEAR: [
                PackedRows(_PROJECTIONS, groups, projections),
                PackedRows(_RATES, groups, {"beta": values, "decay": values}),
            ],
        }
        types = cls.types(settings)
        return [each.at(layer) for layer, kind in enumerate(types) for each in packed[kind]]

    @classmethod
    def attention_rules(cls, settings: Settings) -> list[Rule]:
        """Return the rules for the attention of each layer, or the Gated DeltaNet in its place."""
        gate = f"{OURS}attention.output_gate.projection"
        gates = [Rule(f"{gate}.{kind}", (f"{_QUERY}.{kind}[gate]",)) for kind in _kinds(settings)]
        queries = {f"{_QUERY}.{kind}": f"{_QUERY}.{kind}[query]" for kind in _kinds(settings)}
        full = [
            replace(rule, theirs=tuple(queries.get(name, name) for name in rule.theirs))
            for rule in super().attention_rules(settings)
        ]
        rules = {FULL: [*full, *gates, *same(QK_NORM, "weight")], LINEAR: _delta_rules(settings)}
        types = cls.types(settings)
        return [rule.at(layer) for layer, kind in enumerate(types) for rule in rules[kind]]

    @classmethod
    def feed_forward_rules(cls, settings: Settings, *kinds: str) -> list[Rule]:
        """Return the rules for the router and the experts."""
        return [*Qwen3MoEWeights.feed_forward_rules(settings, *kinds), *same(SHARED, *kinds)]

    @classmethod
    def describe(cls, model: nn.Module) -> Settings:
        """Return the config.json of the most similar model of this family."""
        settings = super().describe(model) | {"hidden_act": "silu"}
        # Parts that the model does not have keep their defaults; the comparison of the models names them.
        for module in model.modules():
            if isinstance(module, MixtureOfExperts):
                settings |= describe_experts(module)
            elif isinstance(module, TokenGate):
                settings["shared_expert_intermediate_size"] = hidden_dim_of(module.layer)
            elif isinstance(module, GatedDeltaNet):
                sizes = {**vars(module), "kernel_size": module.convolution.kernel_size}
                settings |= {theirs: sizes[ours] for ours, theirs in DELTA.items()}
        return settings

    @classmethod
    def describe_positions(cls, model: GPT) -> Settings:
        """Return the settings of the rotation, and the type of each layer."""
        position = part_of(model, Rotary, key="model.position", found=model.position)
        share = {"partial_rotary_factor": position.fraction}
        rope = describe_rotary(position) | share
        mixers = [block.attention for block in blocks_of(model)]
        types = [LINEAR if isinstance(mixer, GatedDeltaNet) else FULL for mixer in mixers]
        return {"rope_parameters": rope, **older_keys(rope), **share, "layer_types": types}


def _kinds(settings: Settings) -> list[str]:
    """Return the kinds of tensors that the projections of attention have."""
    return ["weight", "bias"] if settings["attention_bias"] else ["weight"]


def _delta_rules(settings: Settings) -> list[Rule]:
    """Return the rules for Gated DeltaNet."""
    keys = settings["linear_num_key_heads"] * settings["linear_key_head_dim"]
    values = settings["linear_num_value_heads"] * settings["linear_value_head_dim"]
    projections = tuple(f"{_PROJECTIONS}[{part}]" for part in ("query", "key", "value"))
    own = f"{OURS}attention."
    return [
        Concatenated(f"{own}query_key_value.weight", projections, (keys, keys, values)),
        Rule(f"{own}gate.weight", (f"{_PROJECTIONS}[gate]",)),
        *(Rule(f"{own}{part}.weight", (f"{_RATES}[{part}]",)) for part in ("beta", "decay")),
        Filters(f"{own}convolution.weight", (f"{_DELTA}conv1d.weight",)),
        *(Rule(f"{own}{name}", (f"{_DELTA}{name}",)) for name in ("A_log", "dt_bias")),
        *same({"norm": "norm", "output": "out_proj"}, "weight", ours=own, theirs=_DELTA),
    ]
