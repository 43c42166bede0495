"""GPT-2's weights (Radford et al. 2019), as published by Hugging Face or by OpenAI."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

from llm.models.gpt import GPT
from llm.nn.activations import gelu, gelu_tanh, relu, silu
from llm.nn.feed_forward import FeedForward
from llm.nn.norms import LayerNorm
from llm.nn.positions import Learned
from llm.tokenizers.base import Tokenizer
from llm.tokenizers.gpt2 import gpt2_tokenizer
from llm.weights.compatibility import (
    ModelPart,
    decoder_parts,
    first_block,
    require,
    unwrap_partial,
)
from llm.weights.huggingface import Folder, HuggingFaceWeights, Settings, positive, supported
from llm.weights.key_map import KeyMap, Rule, Transposed
from llm.weights.openai_checkpoint import OpenAIFolder

SIZES = {
    "size.num_layers": "n_layer",
    "size.num_heads": "n_head",
    "size.dim": "n_embd",
    "size.context_length": "n_positions",
    "model.position.context_length": "n_positions",
    "model.vocab_size": "vocab_size",
}
# Names of activations in config.json, and our options.
ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu": "gelu_exact",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
EXPORTED = {gelu_tanh: "gelu_new", gelu: "gelu", relu: "relu", silu: "silu"}
# Modules of a block: our name, published name.
_LAYER = {
    "attention_norm": "ln_1",
    "attention.query_key_value": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.input": "mlp.c_fc",
    "feed_forward.output": "mlp.c_proj",
}


def _rules() -> tuple[Rule, ...]:
    rules = [
        Rule("embedding.weight", ("transformer.wte.weight",)),
        Rule("position.embedding.weight", ("transformer.wpe.weight",)),
        Rule("final_norm.weight", ("transformer.ln_f.weight",)),
        Rule("final_norm.bias", ("transformer.ln_f.bias",)),
        Rule("head.weight", ("lm_head.weight",)),
    ]
    for ours, theirs in _LAYER.items():
        # GPT-2's projections are convolutions, whose matrices are transposed.
        matrix = Rule if ours.endswith("norm") else Transposed
        ours, theirs = f"blocks.{{}}.{ours}", f"transformer.h.{{}}.{theirs}"
        rules.append(matrix(f"{ours}.weight", (f"{theirs}.weight",)))
        rules.append(Rule(f"{ours}.bias", (f"{theirs}.bias",)))
    return tuple(rules)


KEY_MAP = KeyMap(
    rules=_rules(),
    shared={"lm_head.weight": "transformer.wte.weight"},
    # The causal mask and its fill value in old files.
    ignored=("transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"),
    prefix="transformer.",  # absent from files without the head
)


def describe_gpt2(model: GPT) -> tuple[Settings, KeyMap]:
    """Return config.json and the names of the tensors for a model with learned positions.

    Raises:
        ConfigError: the model has a part that GPT-2 does not have; the error names it.
    """
    block, attention = first_block(model, family="GPT-2")
    dim, heads = model.embedding.embedding_dim, attention.num_heads
    kv_heads, head_dim = attention.num_kv_heads, attention.head_dim
    require(
        "GPT-2",
        *decoder_parts(model, norm=LayerNorm, feed_forward=FeedForward, activations=EXPORTED),
        ModelPart("model.attention.num_kv_heads", kv_heads, kv_heads == heads),
        ModelPart("model.attention.head_dim", head_dim, head_dim * heads == dim),
    )
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": model.vocab_size,
        "n_positions": cast(Learned, model.position).embedding.num_embeddings,
        "n_embd": dim,
        "n_layer": len(model.blocks),
        "n_head": heads,
        "n_inner": block.feed_forward.input.out_features,
        "activation_function": EXPORTED[unwrap_partial(block.feed_forward.activation)],
        "layer_norm_epsilon": block.attention_norm.eps,
        "tie_word_embeddings": model.head.weight is model.embedding.weight,
        "embd_pdrop": model.dropout.p,
        "attn_pdrop": attention.dropout.p,
        "resid_pdrop": block.feed_forward.dropout.p,
    }, KEY_MAP


@dataclass(frozen=True)
class GPT2Weights(HuggingFaceWeights):
    """GPT-2 from a folder or the hub: Hugging Face's files, or OpenAI's original checkpoint.

    `model.dropout` sets the dropout, not config.json.
    """

    model_type: ClassVar[str] = "gpt2"
    expected: ClassVar[Mapping[str, Any]] = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }

    @cached_property
    def folder(self) -> Folder:
        """The folder; OpenAI's has hparams.json instead of config.json."""
        path = Path(self.path)
        return OpenAIFolder(path) if (path / "hparams.json").is_file() else super().folder

    def architecture(self, settings: Settings) -> tuple[list[str], Settings]:
        """Return GPT-2's architecture with the activation of config.json."""
        activation = supported(settings, "activation_function", ACTIVATIONS, default="gelu_new")
        return ["+model=gpt2", "+size=124m", f"model/feed_forward={activation}"], {
            **positive(settings, SIZES),
            "model.feed_forward.hidden_dim": settings.get("n_inner"),
            "model.norm.eps": settings.get("layer_norm_epsilon", 1e-5),
            "model.tie_weights": settings.get("tie_word_embeddings", True),
        }

    def key_map(self, settings: Settings) -> KeyMap:
        """Return the rules for GPT-2's tensors."""
        return KEY_MAP

    def default_tokenizer(self) -> Tokenizer | None:
        """Return GPT-2's tokenizer if the vocabulary has its size."""
        return gpt2_tokenizer() if self.settings["vocab_size"] == 50257 else None
