"""The weights of GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from llm.models.gpt import GPT
from llm.nn.activations import gelu, gelu_tanh, relu, silu
from llm.nn.attention import Attention
from llm.nn.norms import LayerNorm
from llm.nn.parallel_block import ParallelBlock
from llm.nn.positions import Rotary
from llm.weights.huggingface import Architecture, HuggingFaceWeights, Settings, positive, supported
from llm.weights.key_map import KeyMap, Rule
from llm.weights.llama import SIZES, same
from llm.weights.model_parts import activation_name, has_biases, hidden_dim_of, part_of
from llm.weights.rotary_settings import describe_rotary, rope_of, rotary_values, split_share

ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": relu,
    "silu": silu,
}
_THEIRS = "gpt_neox.layers.{}."
_LAYER = {
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.input": "mlp.dense_h_to_4h",
    "feed_forward.output": "mlp.dense_4h_to_h",
}
_BUFFERS = ("bias", "masked_bias", "rotary_emb.inv_freq")


@dataclass(frozen=True)
class ByHead(Rule):
    """Rows of queries, keys and values: ours has all queries first, theirs begins with those of the first head.

    Attributes:
        num_heads: number of heads.
    """

    num_heads: int = 1

    def join(self, theirs: list[Tensor]) -> Tensor:
        """Return the rows in the order queries, keys, values."""
        # (H · 3 · D, …) -> (H, 3, D, …) -> (3, H, D, …) -> (3 · H · D, …)
        return theirs[0].unflatten(0, (self.num_heads, 3, -1)).transpose(0, 1).flatten(0, 2)

    def split(self, ours: Tensor) -> list[Tensor]:
        """Return the rows in the order of the heads."""
        return [ours.unflatten(0, (3, self.num_heads, -1)).transpose(0, 1).flatten(0, 2)]


@dataclass(frozen=True)
class GPTNeoXWeights(HuggingFaceWeights):
    """GPT-NeoX and Pythia from a folder or the hub."""

    model_type: ClassVar[str] = "gpt_neox"
    title: ClassVar[str] = "GPT-NeoX"
    classes: ClassVar[Sequence[type[nn.Module]]] = (LayerNorm, Rotary, Attention)
    sizes: ClassVar[Mapping[str, str]] = SIZES
    defaults: ClassVar[Mapping[str, Any]] = {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "rope_parameters": None,
        "attention_bias": True,
    }
    expected: ClassVar[Mapping[str, Sequence[Any]]] = {"is_decoder": [False]}
    # `model.dropout` sets the dropout.
    without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            *("initializer_range", "use_cache"),
            *("attention_dropout", "hidden_dropout", "classifier_dropout"),
        }
    )

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return the architecture of config.json."""
        activation = supported(settings, "hidden_act", ACTIVATIONS, default=None)
        residual = "parallel" if settings["use_parallel_residual"] else "pre_norm"
        values: Settings = {
            **positive(settings, cls.sizes),
            "model.feed_forward.activation._target_": f"{activation.__module__}.{activation.__qualname__}",
            "model.norm.eps": settings["layer_norm_eps"],
            "model.tie_weights": settings["tie_word_embeddings"],
            "model.attention.qkv_bias": settings["attention_bias"],
            "model.attention.bias": settings["attention_bias"],
        }
        rope = rope_of(settings, theta=settings.get("rotary_emb_base", 1e4))
        share, rope = split_share(rope, default=settings.get("rotary_pct", 0.25))
        rotary = rotary_values(rope, context_length=values["size.context_length"])
        values |= {f"model.position.{name}": value for name, value in rotary.items()}
        values["model.position.fraction"] = share
        return Architecture(["+model=gpt_neox", "+size=124m", f"model/residual={residual}"], values)

    @classmethod
    def key_map(cls, settings: Settings) -> KeyMap:
        """Return the rules for the tensors."""
        heads, biased = settings["num_attention_heads"], settings["attention_bias"]
        kinds = ("weight", "bias") if biased else ("weight",)
        own = "blocks.{}.attention.query_key_value"
        return KeyMap(
            rules=(
                Rule("embedding.weight", ("gpt_neox.embed_in.weight",)),
                *(
                    ByHead(f"{own}.{kind}", (f"{_THEIRS}attention.query_key_value.{kind}",), heads)
                    for kind in kinds
                ),
                *same({"attention.output": "attention.dense"}, *kinds, theirs=_THEIRS),
                *same(_LAYER, "weight", "bias", theirs=_THEIRS),
                Rule("final_norm.weight", ("gpt_neox.final_layer_norm.weight",)),
                Rule("final_norm.bias", ("gpt_neox.final_layer_norm.bias",)),
                Rule("head.weight", ("embed_out.weight",)),
            ),
            shared={"embed_out.weight": "gpt_neox.embed_in.weight"},
            # The causal mask and the rotary frequencies in old files.
            ignored=tuple(f"{_THEIRS}attention.{name}" for name in _BUFFERS),
            prefix="gpt_neox.",  # absent from files without the head
            renamed={"lm_head.weight": "embed_out.weight"},
        )

    @classmethod
    def describe(cls, model: nn.Module) -> Settings:
        """Return the config.json of the most similar model of this family."""
        decoder = part_of(model, GPT, key="model")
        layer: Any = decoder.blocks[0]
        attention = part_of(decoder.blocks, Attention, key="model.attention", found=layer.attention)
        norm = part_of(layer.attention_norm, LayerNorm, key="model.norm")
        position = part_of(decoder, Rotary, key="model.position", found=decoder.position)
        share = {"partial_rotary_factor": position.fraction}
        rope = describe_rotary(position) | share
        return {
            "model_type": "gpt_neox",
            "architectures": ["GPTNeoXForCausalLM"],
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.embedding.embedding_dim,
            "intermediate_size": hidden_dim_of(layer.feed_forward),
            "num_hidden_layers": len(decoder.blocks),
            "num_attention_heads": attention.num_heads,
            "hidden_act": activation_name(layer.feed_forward, ACTIVATIONS),
            "layer_norm_eps": norm.eps,
            "max_position_embeddings": decoder.context_length,
            "tie_word_embeddings": decoder.head.weight is decoder.embedding.weight,
            "use_parallel_residual": isinstance(layer, ParallelBlock),
            "attention_bias": has_biases(attention),
            "attention_dropout": attention.dropout.p,
            "hidden_dropout": decoder.dropout.p,
            "rope_parameters": rope,
            "rotary_emb_base": rope["rope_theta"],
            "rotary_pct": position.fraction,
        }
