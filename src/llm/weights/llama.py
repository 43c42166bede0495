"""Llama's weights (Touvron et al. 2023; Grattafiori et al. 2024), as Hugging Face publishes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

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
# What config.json calls the bend of the gate, and our option of it.
ACTIVATIONS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"}
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


@dataclass(frozen=True)
class LlamaWeights(HuggingFaceWeights):
    """Llama and its like (TinyLlama, SmolLM, Llama 3.2, …) out of a folder or the hub."""

    model_type: ClassVar[str] = "llama"
    expected: ClassVar[Mapping[str, Any]] = {"attention_bias": False, "mlp_bias": False}

    def architecture(self, settings: Settings) -> tuple[list[str], Settings]:
        """Llama's parts."""
        if (name := settings.get("hidden_act", "silu")) not in ACTIVATIONS:
            raise unsupported("hidden_act", name, ACTIVATIONS)
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
        raise unsupported("rope_type", kind, ["default", "llama3"])
    return values
