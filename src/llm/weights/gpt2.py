"""GPT-2's weights (Radford et al. 2019), as Hugging Face publishes them and as OpenAI did."""

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
    first_block,
    in_every_decoder,
    require,
    unwrap_partial,
)
from llm.weights.huggingface import Folder, HuggingFaceWeights, Settings, positive, unsupported
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
# What config.json calls an activation, and our option of it.
ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu": "gelu_exact",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
EXPORTED = {gelu_tanh: "gelu_new", gelu: "gelu", relu: "relu", silu: "silu"}
_LAYER = {
    # ours in a block: theirs in a layer
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
        # GPT-2's projections were written as convolutions, whose matrices lie the other way.
        matrix = Rule if ours.endswith("norm") else Transposed
        ours, theirs = f"blocks.{{}}.{ours}", f"transformer.h.{{}}.{theirs}"
        rules.append(matrix(f"{ours}.weight", (f"{theirs}.weight",)))
        rules.append(Rule(f"{ours}.bias", (f"{theirs}.bias",)))
    return tuple(rules)


KEY_MAP = KeyMap(
    rules=_rules(),
    shared={"lm_head.weight": "transformer.wte.weight"},
    # The causal mask and its fill value, which old files keep beside the parameters.
    ignored=("transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"),
    prefix="transformer.",  # of the whole model, which files of its body leave out
)


def describe_gpt2(model: GPT) -> tuple[Settings, KeyMap]:
    """The config.json of a model with learned positions, and whose tensors are which of its own.

    Raises:
        ConfigError: it has another part that GPT-2 has not; the line names it.
    """
    block, attention = first_block(model)
    dim = model.embedding.embedding_dim
    kind = getattr(block.feed_forward, "activation", None)
    activation = EXPORTED.get(unwrap_partial(kind))
    require(
        "GPT-2",
        *in_every_decoder(model, LayerNorm),
        ModelPart(
            "model.attention.num_kv_heads",
            attention.num_kv_heads,
            attention.num_kv_heads == attention.num_heads,
        ),
        ModelPart(
            "model.attention.head_dim",
            attention.head_dim,
            attention.head_dim * attention.num_heads == dim,
        ),
        ModelPart(
            "model.feed_forward", block.feed_forward, type(block.feed_forward) is FeedForward
        ),
        ModelPart("model.feed_forward.activation", kind, activation is not None),
    )
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": model.vocab_size,
        "n_positions": cast(Learned, model.position).embedding.num_embeddings,
        "n_embd": dim,
        "n_layer": len(model.blocks),
        "n_head": attention.num_heads,
        "n_inner": block.feed_forward.input.out_features,
        "activation_function": activation,
        "layer_norm_epsilon": block.attention_norm.eps,
        "tie_word_embeddings": model.head.weight is model.embedding.weight,
        "embd_pdrop": model.dropout.p,
        "attn_pdrop": attention.dropout.p,
        "resid_pdrop": block.feed_forward.dropout.p,
    }, KEY_MAP


@dataclass(frozen=True)
class GPT2Weights(HuggingFaceWeights):
    """GPT-2 out of a folder or the hub: Hugging Face's files, or OpenAI's original checkpoint.

    Dropout is not taken from config.json: it belongs to training, and `model.dropout` sets it.
    """

    model_type: ClassVar[str] = "gpt2"
    expected: ClassVar[Mapping[str, Any]] = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }

    @cached_property
    def folder(self) -> Folder:
        """The folder; what OpenAI released has hparams.json in place of config.json."""
        path = Path(self.path)
        return OpenAIFolder(path) if (path / "hparams.json").is_file() else super().folder

    def architecture(self, settings: Settings) -> tuple[list[str], Settings]:
        """GPT-2's parts, with another activation where config.json names one."""
        options = ["+model=gpt2", "+size=124m"]
        if (name := settings.get("activation_function", "gelu_new")) not in ACTIVATIONS:
            raise unsupported("activation_function", name, choices=ACTIVATIONS)
        return [*options, f"model/feed_forward={ACTIVATIONS[name]}"], {
            **positive(settings, SIZES),
            "model.feed_forward.hidden_dim": settings.get("n_inner"),
            "model.norm.eps": settings.get("layer_norm_epsilon", 1e-5),
            "model.tie_weights": settings.get("tie_word_embeddings", True),
        }

    def key_map(self, settings: Settings) -> KeyMap:
        """GPT-2's names."""
        return KEY_MAP

    def default_tokenizer(self) -> Tokenizer | None:
        """The one that all of GPT-2's sizes share, where the vocabulary is its."""
        return gpt2_tokenizer() if self.settings["vocab_size"] == 50257 else None
