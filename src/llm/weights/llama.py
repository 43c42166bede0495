"""Llama's weights (Touvron et al. 2023; Grattafiori et al. 2024), as Hugging Face publishes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from llm.models.gpt import GPT
from llm.nn.activations import gelu_tanh, silu
from llm.nn.feed_forward import GatedFeedForward
from llm.nn.norms import RMSNorm
from llm.nn.positions import Llama3Scaling, Rotary
from llm.weights.compatibility import (
    ModelPart,
    first_block,
    in_every_decoder,
    require,
    unwrap_partial,
)
from llm.weights.huggingface import HuggingFaceWeights, Settings, positive, unsupported
from llm.weights.key_map import KeyMap, QueryKeyValue, Rule

SIZES = {
    "size.num_layers": "num_hidden_layers",
    "size.num_heads": "num_attention_heads",
    "size.dim": "hidden_size",
    "size.context_length": "max_position_embeddings",
    "model.feed_forward.hidden_dim": "intermediate_size",
    "model.vocab_size": "vocab_size",
}
# What config.json calls the nonlinearity of the gate, and our option of it.
ACTIVATIONS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"}
EXPORTED = {silu: "silu", gelu_tanh: "gelu_pytorch_tanh"}
# The numbers of a slower rotation: ours, theirs.
SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "context_length": "original_max_position_embeddings",
}

_THEIRS = "model.layers.{}."
_OURS = "blocks.{}."


def key_map(queries_to_keys: int) -> KeyMap:
    """The rules for a model with so many query heads to a head of keys and values."""
    projections = tuple(f"{_THEIRS}self_attn.{part}_proj.weight" for part in "qkv")
    ours = f"{_OURS}attention.query_key_value.weight"
    alike = {
        "embedding": "model.embed_tokens",
        f"{_OURS}attention_norm": f"{_THEIRS}input_layernorm",
        f"{_OURS}attention.output": f"{_THEIRS}self_attn.o_proj",
        f"{_OURS}feed_forward_norm": f"{_THEIRS}post_attention_layernorm",
        f"{_OURS}feed_forward.gate": f"{_THEIRS}mlp.gate_proj",
        f"{_OURS}feed_forward.input": f"{_THEIRS}mlp.up_proj",
        f"{_OURS}feed_forward.output": f"{_THEIRS}mlp.down_proj",
        "final_norm": "model.norm",
        "head": "lm_head",
    }
    return KeyMap(
        rules=(
            QueryKeyValue(ours, projections, queries_to_keys),
            *(Rule(f"{our}.weight", (f"{their}.weight",)) for our, their in alike.items()),
        ),
        shared={"lm_head.weight": "model.embed_tokens.weight"},
        # The rotary frequencies, which old files keep beside the parameters.
        ignored=(f"{_THEIRS}self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"),
        prefix="model.",  # of the whole model, which files of its body leave out
    )


def describe_llama(model: GPT) -> tuple[Settings, KeyMap]:
    """The config.json of a model with rotary positions, and whose tensors are which of its own.

    Raises:
        ConfigError: it has another part that Llama has not; the line names it.
    """
    block, attention = first_block(model)
    gate = getattr(block.feed_forward, "activation", None)
    activation = EXPORTED.get(unwrap_partial(gate))
    position = cast(Rotary, model.position)
    scaling = position.scaling
    biased = [name for name, _ in block.named_parameters() if name.endswith("bias")]
    require(
        "Llama",
        ModelPart(
            "model.position.scaling",
            scaling,
            scaling is None or isinstance(scaling, Llama3Scaling),
        ),
        *in_every_decoder(model, RMSNorm),
        ModelPart(
            "model.feed_forward", block.feed_forward, type(block.feed_forward) is GatedFeedForward
        ),
        ModelPart("model.feed_forward.activation", gate, activation is not None),
        ModelPart(f"model.{''.join(biased[:1])}", "a bias", not biased),
    )
    rope: Settings = {"rope_type": "default", "rope_theta": position.theta}
    if scaling is not None:
        slower = {theirs: getattr(scaling, ours) for ours, theirs in SCALING.items()}
        rope |= {"rope_type": "llama3", **slower}
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": model.vocab_size,
        "hidden_size": model.embedding.embedding_dim,
        "intermediate_size": block.feed_forward.input.out_features,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": activation,
        "rms_norm_eps": block.attention_norm.eps,
        "max_position_embeddings": model.context_length,
        "tie_word_embeddings": model.head.weight is model.embedding.weight,
        "attention_dropout": attention.dropout.p,
        # as their library has it since version 5, and before
        "rope_parameters": rope,
        "rope_theta": position.theta,
        "rope_scaling": rope if scaling is not None else None,
    }, key_map(attention.num_heads // attention.num_kv_heads)


@dataclass(frozen=True)
class LlamaWeights(HuggingFaceWeights):
    """Llama and its like (TinyLlama, SmolLM, Llama 3.2, …) out of a folder or the hub."""

    model_type: ClassVar[str] = "llama"
    expected: ClassVar[Mapping[str, Any]] = {"attention_bias": False, "mlp_bias": False}

    def architecture(self, settings: Settings) -> tuple[list[str], Settings]:
        """Llama's parts."""
        if (name := settings.get("hidden_act", "silu")) not in ACTIVATIONS:
            raise unsupported("hidden_act", name, choices=ACTIVATIONS)
        options = ["+model=llama", "+size=124m", f"model/feed_forward={ACTIVATIONS[name]}"]
        return options, {
            **positive(settings, SIZES),
            "size.num_kv_heads": settings.get("num_key_value_heads"),
            "model.attention.head_dim": settings.get("head_dim"),
            "model.norm.eps": settings.get("rms_norm_eps", 1e-6),
            "model.tie_weights": settings.get("tie_word_embeddings", False),
            **_rotation(settings),
        }

    def key_map(self, settings: Settings) -> KeyMap:
        """Llama's names."""
        heads = settings["num_attention_heads"]
        return key_map(heads // (settings.get("num_key_value_heads") or heads))


def _rotation(settings: Settings) -> Settings:
    """The rotary embedding: its base, and Llama 3's scaling where config.json asks for it.

    Hugging Face's library has `rope_parameters` since version 5; before, the base stood by itself, and
    the scaling in `rope_scaling`.
    """
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    values = {
        "model.position.theta": float(rope.get("rope_theta", settings.get("rope_theta", 1e4)))
    }
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "llama3":
        scaling = {ours: rope[theirs] for ours, theirs in SCALING.items() if theirs in rope}
        target = {"_target_": "llm.nn.positions.Llama3Scaling"}
        return {**values, "model.position.scaling": target | scaling}
    if kind != "default":
        raise unsupported("rope_type", kind, choices=["default", "llama3"])
    return values
