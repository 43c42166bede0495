"""Llama's weights (Touvron et al. 2023; Grattafiori et al. 2024), as published by Hugging Face.

Most later families name their tensors as Llama does. Their files contain only what differs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from llm.models.gpt import GPT
from llm.nn.activations import gelu, gelu_tanh, relu, silu
from llm.nn.attention import Attention
from llm.nn.norms import RMSNorm
from llm.nn.positions import Rotary
from llm.weights.huggingface import Architecture, HuggingFaceWeights, Settings, positive, supported
from llm.weights.key_map import KeyMap, QueryKeyValue, Rule
from llm.weights.model_parts import activation_name, has_biases, hidden_dim_of, part_of
from llm.weights.rotary_settings import describe_rotary, older_keys, rope_of, rotary_values

# Our keys, and those of config.json.
SIZES = {
    "size.num_layers": "num_hidden_layers",
    "size.num_heads": "num_attention_heads",
    "size.dim": "hidden_size",
    "size.context_length": "max_position_embeddings",
    "model.vocab_size": "vocab_size",
    "model.feed_forward.hidden_dim": "intermediate_size",
}
# The gate's activation by its name in config.json.
ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "silu": silu,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu": gelu,
    "relu": relu,
}
THEIRS = "model.layers.{}."
OURS = "blocks.{}."
GATED = {
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.input": "mlp.up_proj",
    "feed_forward.output": "mlp.down_proj",
}
OUTPUT = {"attention.output": "self_attn.o_proj"}
# Norms of the queries and keys of each head.
QK_NORM = {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"}


def same(
    names: Mapping[str, str], *kinds: str, ours: str = OURS, theirs: str = THEIRS
) -> list[Rule]:
    """Return the rules for tensors of each layer that are stored in the same way.

    Args:
        names: our modules and theirs.
        kinds: `weight`, `bias` or both.
        ours: prefix of our names.
        theirs: prefix of theirs.
    """
    return [
        Rule(f"{ours}{our}.{kind}", (f"{theirs}{their}.{kind}",))
        for our, their in names.items()
        for kind in kinds
    ]


def projections(settings: Settings, kind: str) -> Rule:
    """Return the rule for the projections of queries, keys and values, which one matrix of ours contains."""
    heads = settings["num_attention_heads"]
    theirs = tuple(f"{THEIRS}self_attn.{part}_proj.{kind}" for part in "qkv")
    groups = heads // (settings["num_key_value_heads"] or heads)
    return QueryKeyValue(f"{OURS}attention.query_key_value.{kind}", theirs, groups)


@dataclass(frozen=True)
class LlamaWeights(HuggingFaceWeights):
    """Llama and models of the same family (TinyLlama, SmolLM, Llama 3.2, …) from a folder or the hub.

    Attributes:
        preset: our option of `model`.
        norms: our norms of a layer, and theirs.
        activation: their key of the gate's activation.
        theta: base of the rotation if config.json has none.
    """

    model_type: ClassVar[str] = "llama"
    title: ClassVar[str] = "Llama"
    classes: ClassVar[Sequence[type[nn.Module]]] = (RMSNorm, Rotary, Attention)
    their_class: ClassVar[str] = "LlamaForCausalLM"
    preset: ClassVar[str] = "llama"
    norms: ClassVar[Mapping[str, str]] = {
        "attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm",
    }
    activation: ClassVar[str] = "hidden_act"
    sizes: ClassVar[Mapping[str, str]] = SIZES
    theta: ClassVar[float] = 1e4
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_parameters": None,
        "attention_bias": False,
        "mlp_bias": False,
    }
    # `model.dropout` sets the dropout. pretraining_tp splits products, which changes their rounding only.
    without_effect: ClassVar[frozenset[str]] = frozenset(
        {"initializer_range", "use_cache", "attention_dropout", "pretraining_tp"}
    )

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return the architecture of config.json."""
        activation = supported(settings, cls.activation, ACTIVATIONS, default="silu")
        values: Settings = {
            **positive(settings, cls.sizes),
            "size.num_kv_heads": settings["num_key_value_heads"],
            "model.attention.head_dim": settings["head_dim"],
            "model.feed_forward.activation._target_": f"{activation.__module__}.{activation.__qualname__}",
            "model.norm.eps": settings["rms_norm_eps"],
            "model.tie_weights": settings["tie_word_embeddings"],
        }
        biases = cls.biases(settings)
        keys = ("model.attention.qkv_bias", "model.attention.bias", "model.feed_forward.bias")
        values |= dict(zip(keys, biases, strict=True))
        length = values["size.context_length"]
        rotary = rotary_values(rope_of(settings, theta=cls.theta), context_length=length)
        values |= {f"model.position.{name}": value for name, value in rotary.items()}
        return Architecture([f"+model={cls.preset}", "+size=124m"], values)

    @classmethod
    def key_map(cls, settings: Settings) -> KeyMap:
        """Return the rules for the tensors."""
        return KeyMap(
            rules=tuple(cls.rules(settings)),
            shared={"lm_head.weight": "model.embed_tokens.weight"},
            # The rotary frequencies in old files.
            ignored=(f"{THEIRS}self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"),
            prefix="model.",  # absent from files without the head
        )

    @classmethod
    def rules(cls, settings: Settings) -> list[Rule]:
        """Return the rules for all tensors."""
        *_, mlp_bias = cls.biases(settings)
        return [
            Rule("embedding.weight", ("model.embed_tokens.weight",)),
            *cls.attention_rules(settings),
            *cls.feed_forward_rules(settings, *_kinds(bias=mlp_bias)),
            *same(cls.norms, "weight"),
            Rule("final_norm.weight", ("model.norm.weight",)),
            Rule("head.weight", ("lm_head.weight",)),
        ]

    @classmethod
    def attention_rules(cls, settings: Settings) -> list[Rule]:
        """Return the rules for the projections of attention."""
        qkv_bias, output_bias, _ = cls.biases(settings)
        return [
            *(projections(settings, kind) for kind in _kinds(bias=qkv_bias)),
            *same(OUTPUT, *_kinds(bias=output_bias)),
        ]

    @classmethod
    def feed_forward_rules(cls, settings: Settings, *kinds: str) -> list[Rule]:
        """Return the rules for the feed-forward layers."""
        return same(GATED, *kinds)

    @classmethod
    def biases(cls, settings: Settings) -> tuple[bool, bool, bool]:
        """Return whether queries, keys and values, the output of attention, and feed-forward layers have biases."""
        attention, mlp = (
            key in cls.defaults and settings[key] for key in ("attention_bias", "mlp_bias")
        )
        return attention, attention, mlp

    @classmethod
    def describe(cls, model: nn.Module) -> Settings:
        """Return the config.json of the most similar model of this family."""
        decoder = part_of(model, GPT, key="model")
        layer: Any = decoder.blocks[0]
        attention = part_of(decoder.blocks, Attention, key="model.attention", found=layer.attention)
        norm = part_of(layer.attention_norm, RMSNorm, key="model.norm")
        settings = {
            "model_type": cls.model_type,
            "architectures": [cls.their_class],
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.embedding.embedding_dim,
            cls.sizes["model.feed_forward.hidden_dim"]: hidden_dim_of(layer.feed_forward),
            "num_hidden_layers": len(decoder.blocks),
            "num_attention_heads": attention.num_heads,
            "num_key_value_heads": attention.num_kv_heads,
            "head_dim": attention.head_dim,
            cls.activation: activation_name(layer.feed_forward, ACTIVATIONS),
            "rms_norm_eps": norm.eps,
            "max_position_embeddings": decoder.context_length,
            "tie_word_embeddings": decoder.head.weight is decoder.embedding.weight,
            "attention_dropout": attention.dropout.p,
            **cls.describe_positions(decoder),
        }
        biases = {
            "attention_bias": has_biases(attention),
            "mlp_bias": has_biases(layer.feed_forward),
        }
        return settings | {key: bias for key, bias in biases.items() if key in cls.defaults}

    @classmethod
    def describe_positions(cls, model: GPT) -> Settings:
        """Return the settings of the rotation."""
        rope = describe_rotary(part_of(model, Rotary, key="model.position", found=model.position))
        return {"rope_parameters": rope, **older_keys(rope)}


def _kinds(*, bias: bool) -> list[str]:
    return ["weight", "bias"] if bias else ["weight"]
