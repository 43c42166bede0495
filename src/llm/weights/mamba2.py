"""Mamba-2's weights (Dao and Gu 2024), as published by Hugging Face."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from llm.models.gpt import GPT
from llm.nn.mamba2 import Mamba2
from llm.nn.norms import RMSNorm
from llm.weights.huggingface import Architecture, HuggingFaceWeights, Settings, positive
from llm.weights.key_map import KeyMap, Rule
from llm.weights.llama import same
from llm.weights.model_parts import part_of

# config.json has no context length. The released models were trained with 2,048 tokens.
CONTEXT_LENGTH = 2048
_THEIRS = "backbone.layers.{}."


@dataclass(frozen=True)
class Filters(Rule):
    """The filters of a convolution: (channels, 1, K) in their files, (channels, K) in our models."""

    def join(self, theirs: list[Tensor]) -> Tensor:
        """Return the filters without the second axis."""
        return theirs[0].squeeze(1)

    def split(self, ours: Tensor) -> list[Tensor]:
        """Return the filters with the second axis."""
        return [ours.unsqueeze(1)]


@dataclass(frozen=True)
class Mamba2Weights(HuggingFaceWeights):
    """Mamba-2 from a folder or the hub, in the format of Hugging Face's library."""

    model_type: ClassVar[str] = "mamba2"
    title: ClassVar[str] = "Mamba-2"
    classes: ClassVar[Sequence[type[nn.Module]]] = (RMSNorm, Mamba2)
    sizes: ClassVar[Mapping[str, str]] = {
        "size.num_layers": "num_hidden_layers",
        "size.num_heads": "num_heads",
        "size.dim": "hidden_size",
        "model.vocab_size": "vocab_size",
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        "state_size": 128,
        "layer_norm_epsilon": 1e-5,
        "expand": 2,
        "conv_kernel": 4,
        "n_groups": 8,
        "use_bias": False,
        "tie_word_embeddings": False,
    }
    expected: ClassVar[Mapping[str, Sequence[Any]]] = {
        "use_conv_bias": [True],
        "hidden_act": ["silu"],
        "time_step_limit": [[0.0, math.inf], [0.0, {"__float__": "Infinity"}]],
    }
    # Initialization, kernels and precision; head_dim is the width of the heads divided by their number.
    without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            *("initializer_range", "rescale_prenorm_residual", "use_cache", "chunk_size"),
            *("time_step_min", "time_step_max", "time_step_floor", "time_step_rank"),
            *("residual_in_fp32", "head_dim"),
        }
    )

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return the architecture of config.json."""
        epsilon = settings["layer_norm_epsilon"]
        return Architecture(
            ["+model=mamba2", "+size=124m"],
            {
                **positive(settings, cls.sizes),
                "size.context_length": settings.get("max_position_embeddings", CONTEXT_LENGTH),
                "model.norm.eps": epsilon,
                "model.tie_weights": settings["tie_word_embeddings"],
                "model.attention.eps": epsilon,
                "model.attention.expand": settings["expand"],
                "model.attention.state_dim": settings["state_size"],
                "model.attention.num_groups": settings["n_groups"],
                "model.attention.kernel_size": settings["conv_kernel"],
                "model.attention.bias": settings["use_bias"],
            },
        )

    @classmethod
    def key_map(cls, settings: Settings) -> KeyMap:
        """Return the rules for the tensors."""
        kinds = ("weight", "bias") if settings["use_bias"] else ("weight",)
        own, mixer = "blocks.{}.attention.", f"{_THEIRS}mixer."
        convolution = (f"{own}convolution.weight", (f"{mixer}conv1d.weight",))
        projections = {"attention.input": "mixer.in_proj", "attention.output": "mixer.out_proj"}
        return KeyMap(
            rules=(
                Rule("embedding.weight", ("backbone.embeddings.weight",)),
                *same(
                    {"attention_norm": "norm", "attention.norm": "mixer.norm"},
                    "weight",
                    theirs=_THEIRS,
                ),
                *same(projections, *kinds, theirs=_THEIRS),
                Filters(*convolution),
                Rule(f"{own}convolution.bias", (f"{mixer}conv1d.bias",)),
                *(Rule(f"{own}{name}", (f"{mixer}{name}",)) for name in ("A_log", "D", "dt_bias")),
                Rule("final_norm.weight", ("backbone.norm_f.weight",)),
                Rule("head.weight", ("lm_head.weight",)),
            ),
            shared={"lm_head.weight": "backbone.embeddings.weight"},
            prefix="backbone.",  # absent from files without the head
            renamed={"backbone.embedding.weight": "backbone.embeddings.weight"},
        )

    @classmethod
    def describe(cls, model: nn.Module) -> Settings:
        """Return the config.json of the most similar model of this family."""
        decoder = part_of(model, GPT, key="model")
        layer: Any = decoder.blocks[0]
        mixer = part_of(decoder.blocks, Mamba2, key="model.attention", found=layer.attention)
        norm = part_of(layer.attention_norm, RMSNorm, key="model.norm")
        dim = decoder.embedding.embedding_dim
        return {
            "model_type": "mamba2",
            "architectures": ["Mamba2ForCausalLM"],
            "vocab_size": decoder.vocab_size,
            "hidden_size": dim,
            "num_hidden_layers": len(decoder.blocks),
            "num_heads": mixer.num_heads,
            "head_dim": mixer.head_dim,
            "state_size": mixer.state_dim,
            "expand": mixer.num_heads * mixer.head_dim // dim,
            "conv_kernel": mixer.convolution.kernel_size,
            "n_groups": mixer.num_groups,
            "use_bias": mixer.output.bias is not None,
            "layer_norm_epsilon": norm.eps,
            "max_position_embeddings": decoder.context_length,
            "tie_word_embeddings": decoder.head.weight is decoder.embedding.weight,
        }
