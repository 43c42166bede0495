"""GPT-2's weights (Radford et al. 2019), as published by Hugging Face or by OpenAI."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from llm.models.gpt import GPT
from llm.nn.activations import gelu, gelu_tanh, relu, silu
from llm.nn.attention import Attention
from llm.nn.norms import LayerNorm
from llm.nn.positions import Learned
from llm.tokenizers.base import Tokenizer
from llm.tokenizers.gpt2 import gpt2_tokenizer
from llm.weights.huggingface import (
    Architecture,
    Folder,
    HuggingFaceWeights,
    Settings,
    positive,
    supported,
)
from llm.weights.key_map import KeyMap, Rule, Transposed
from llm.weights.model_parts import activation_name, hidden_dim_of, part_of
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
EXPORTED = {"gelu_new": gelu_tanh, "gelu": gelu, "relu": relu, "silu": silu}
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


@dataclass(frozen=True)
class GPT2Weights(HuggingFaceWeights):
    """GPT-2 from a folder or the hub: Hugging Face's files, or OpenAI's original checkpoint.

    `model.dropout` sets the dropout, not config.json.
    """

    model_type: ClassVar[str] = "gpt2"
    title: ClassVar[str] = "GPT-2"
    classes: ClassVar[Sequence[type[nn.Module]]] = (LayerNorm, Learned, Attention)
    sizes: ClassVar[Mapping[str, str]] = SIZES
    defaults: ClassVar[Mapping[str, Any]] = {
        "activation_function": "gelu_new",
        "n_inner": None,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    }
    expected: ClassVar[Mapping[str, Sequence[Any]]] = {
        "scale_attn_weights": [True],
        "scale_attn_by_inverse_layer_idx": [False],
        "add_cross_attention": [False],
    }
    # Initialization, the precision of attention, and heads of classifiers.
    without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            *("initializer_range", "use_cache", "reorder_and_upcast_attn"),
            *("resid_pdrop", "embd_pdrop", "attn_pdrop"),
            *("summary_type", "summary_use_proj", "summary_activation"),
            *("summary_proj_to_labels", "summary_first_dropout"),
        }
    )

    @cached_property
    def folder(self) -> Folder:
        """The folder; OpenAI's has hparams.json instead of config.json."""
        path = Path(self.path)
        return OpenAIFolder(path) if (path / "hparams.json").is_file() else super().folder

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return GPT-2's architecture with the activation of config.json."""
        activation = supported(settings, "activation_function", ACTIVATIONS, default=None)
        return Architecture(
            ["+model=gpt2", "+size=124m", f"model/feed_forward={activation}"],
            {
                **positive(settings, cls.sizes),
                "model.feed_forward.hidden_dim": settings["n_inner"],
                "model.norm.eps": settings["layer_norm_epsilon"],
                "model.tie_weights": settings["tie_word_embeddings"],
            },
        )

    @classmethod
    def key_map(cls, settings: Settings) -> KeyMap:
        """Return the rules for GPT-2's tensors."""
        return KEY_MAP

    @classmethod
    def describe(cls, model: nn.Module) -> Settings:
        """Return the config.json of the most similar model of this family."""
        decoder = part_of(model, GPT, key="model")
        layer: Any = decoder.blocks[0]
        attention = part_of(decoder.blocks, Attention, key="model.attention", found=layer.attention)
        norm = part_of(layer.attention_norm, LayerNorm, key="model.norm")
        position = part_of(decoder, Learned, key="model.position", found=decoder.position)
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": decoder.vocab_size,
            "n_positions": position.embedding.num_embeddings,
            "n_embd": decoder.embedding.embedding_dim,
            "n_layer": len(decoder.blocks),
            "n_head": attention.num_heads,
            "n_inner": hidden_dim_of(layer.feed_forward),
            "activation_function": activation_name(layer.feed_forward, EXPORTED),
            "layer_norm_epsilon": norm.eps,
            "tie_word_embeddings": decoder.head.weight is decoder.embedding.weight,
            "embd_pdrop": decoder.dropout.p,
            "attn_pdrop": attention.dropout.p,
            "resid_pdrop": layer.feed_forward.dropout.p,
        }

    def default_tokenizer(self) -> Tokenizer | None:
        """Return GPT-2's tokenizer if the vocabulary has its size."""
        return gpt2_tokenizer() if self.settings["vocab_size"] == 50257 else None
