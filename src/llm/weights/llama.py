"""Llama's weights (Touvron et al. 2023; Grattafiori et al. 2024), as published by Hugging Face."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from llm.models.gpt import GPT
from llm.nn.activations import gelu_tanh, silu
from llm.nn.feed_forward import GatedFeedForward
from llm.nn.norms import RMSNorm
from llm.nn.positions import Rotary
from llm.nn.rotary_scaling import Llama3Scaling
from llm.weights.compatibility import (
    ModelPart,
    decoder_parts,
    first_block,
    require,
    unwrap_partial,
)
from llm.weights.huggingface import HuggingFaceWeights, Settings, positive, supported
from llm.weights.key_map import KeyMap, QueryKeyValue, Rule

SIZES = {
    "size.num_layers": "num_hidden_layers",
    "size.num_heads": "num_attention_heads",
    "size.dim": "hidden_size",
    "size.context_length": "max_position_embeddings",
    "model.feed_forward.hidden_dim": "intermediate_size",
    "model.vocab_size": "vocab_size",
}
# Names of the gate's activation in config.json, and our options.
ACTIVATIONS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"}
EXPORTED = {silu: "silu", gelu_tanh: "gelu_pytorch_tanh"}
# Settings of Llama 3's scaled rotary embedding: our name, published name.
SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "context_length": "original_max_position_embeddings",
}

_THEIRS = "model.layers.{}."
_OURS = "blocks.{}."


def key_map(queries_to_keys: int) -> KeyMap:
    """Return the rules for `queries_to_keys` query heads per key head."""
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
        # The rotary frequencies in old files.
        ignored=(f"{_THEIRS}self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"),
        prefix="model.",  # absent from files without the head
    )


def describe_llama(model: GPT) -> tuple[Settings, KeyMap]:
    """Return config.json and the names of the tensors for a model with rotary positions.

    Raises:
        ConfigError: the model has a part that Llama does not have; the error names it.
    """
    block, attention = first_block(model, family="Llama")
    position = cast(Rotary, model.position)
    scaling = position.scaling
    biased = [name for name, _ in block.named_parameters() if name.endswith("bias")]
    require(
        "Llama",
        ModelPart("model.position.fraction", position.fraction, position.fraction == 1),
        ModelPart("model.position.scaling", scaling, isinstance(scaling, Llama3Scaling | None)),
        *decoder_parts(model, norm=RMSNorm, feed_forward=GatedFeedForward, activations=EXPORTED),
        ModelPart(f"model.{''.join(biased[:1])}", "a bias", not biased),
    )
    rope: Settings = {"rope_type": "default", "rope_theta": position.theta}
    if scaling is not None:
        scaled = {theirs: getattr(scaling, ours) for ours, theirs in SCALING.items()}
        rope |= {"rope_type": "llama3", **scaled}
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
        "hidden_act": EXPORTED[unwrap_partial(block.feed_forward.activation)],
        "rms_norm_eps": block.attention_norm.eps,
        "max_position_embeddings": model.context_length,
        "tie_word_embeddings": model.head.weight is model.embedding.weight,
        "attention_dropout": attention.dropout.p,
        # Hugging Face's library reads `rope_parameters` since version 5, and the other two keys before.
        "rope_parameters": rope,
        "rope_theta": position.theta,
        "rope_scaling": rope if scaling is not None else None,
    }, key_map(attention.num_heads // attention.num_kv_heads)


@dataclass(frozen=True)
class LlamaWeights(HuggingFaceWeights):
    """Llama and models of the same family (TinyLlama, SmolLM, Llama 3.2, …) from a folder or the hub."""

    model_type: ClassVar[str] = "llama"
    expected: ClassVar[Mapping[str, Any]] = {"attention_bias": False, "mlp_bias": False}

    def architecture(self, settings: Settings) -> tuple[list[str], Settings]:
        """Return Llama's architecture with the activation of config.json."""
        activation = supported(settings, "hidden_act", ACTIVATIONS, default="silu")
        return ["+model=llama", "+size=124m", f"model/feed_forward={activation}"], {
            **positive(settings, SIZES),
            "size.num_kv_heads": settings.get("num_key_value_heads"),
            "model.attention.head_dim": settings.get("head_dim"),
            "model.norm.eps": settings.get("rms_norm_eps", 1e-6),
            "model.tie_weights": settings.get("tie_word_embeddings", False),
            **_rotation(settings),
        }

    def key_map(self, settings: Settings) -> KeyMap:
        """Return the rules for Llama's tensors."""
        heads = settings["num_attention_heads"]
        return key_map(heads // (settings.get("num_key_value_heads") or heads))


def _rotation(settings: Settings) -> Settings:
    """Return the base of the rotary embedding, and Llama 3's scaling if config.json has it.

    Hugging Face's library writes both to `rope_parameters` since version 5. Before, it wrote them to `rope_theta` and
    `rope_scaling`.
    """
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", settings.get("rope_theta", 1e4)))
    values: Settings = {"model.position.theta": theta}
    kinds = {"default": False, "llama3": True}
    if supported(rope, "rope_type", kinds, default=rope.get("type", "default")):
        scaling = {ours: rope[theirs] for ours, theirs in SCALING.items() if theirs in rope}
        target = {"_target_": "llm.nn.positions.Llama3Scaling"}
        values["model.position.scaling"] = target | scaling
    return values
