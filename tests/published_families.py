"""Small models of Hugging Face's library with large random weights: one row for each variant of a family."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from float64_mode import Float64
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from llm.weights.families import FAMILIES

VOCAB = 257  # that of the byte tokenizer
TOKENS = torch.randint(VOCAB, (3, 40), generator=torch.Generator().manual_seed(0))
# The slow paths of theirs are exact in float64.
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
# Heads are grouped and their width is not that of the model divided by their number, where a family allows it.
DECODER = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": {**DECODER, "num_key_value_heads": 4},
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "head_dim": 16,
        "n_groups": 2,
        "state_size": 8,
    },
    "gemma2": {**DECODER, "head_dim": 12, "sliding_window": 6},
    "gemma3_text": {**DECODER, "head_dim": 12, "sliding_window": 6},
    "mistral": {**DECODER, "sliding_window": 6},
    "mixtral": {**DECODER, "num_local_experts": 5},
    "olmo3": {**DECODER, "sliding_window": 6},
    "qwen3": {**DECODER, "head_dim": 12},
    "qwen3_moe": {
        **DECODER,
        "head_dim": 12,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
    },
    "qwen3_next": {
        **DECODER,
        "head_dim": 16,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 6,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 20,
    },
}


class Family(NamedTuple):
    """A variant of a family: its name in config.json, and settings besides `SIZES`."""

    model_type: str
    changes: dict[str, Any]

    def make(self, **changes: Any) -> Any:
        """Return a model of theirs with large weights (std 0.3), so that every part affects the logits."""
        sizes = SIZES.get(self.model_type, DECODER)
        settings = {**sizes, **self.changes, **changes, "vocab_size": VOCAB}
        ids = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": None}
        config = AutoConfig.for_model(self.model_type, **{**ids, **settings})
        theirs = AutoModelForCausalLM.from_config(config, **EAGER)
        torch.manual_seed(0)
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return theirs.eval()

    def weights(self, path: Path | str, **changes: Any) -> Any:
        """Return our reader of a folder."""
        return FAMILIES[self.model_type](str(path), **changes)


def variant(model_type: str, **changes: Any) -> Family:
    """Return a row of `VARIANTS`."""
    return Family(model_type, changes)


def rope(kind: str, **changes: Any) -> dict[str, Any]:
    """Return the parameters of a rotation for a context that is longer than in pretraining."""
    pretrained = {} if kind == "linear" else {"original_max_position_embeddings": 16}
    return {"rope_type": kind, "rope_theta": 500.0, "factor": 4.0, **pretrained, **changes}


LLAMA3 = rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0)
YARN = rope("yarn", beta_fast=2.0, beta_slow=1.0)
PLAIN = {"rope_type": "default", "rope_theta": 300.0}
VARIANTS = {
    "gpt2": variant("gpt2"),
    "gpt2-odd": variant(
        "gpt2",
        n_inner=48,
        activation_function="gelu",
        layer_norm_epsilon=1e-3,
        tie_word_embeddings=False,
    ),
    "llama": variant("llama"),
    "llama-odd": variant(
        "llama",
        num_key_value_heads=1,
        head_dim=12,
        hidden_act="gelu_pytorch_tanh",
        rms_norm_eps=1e-3,
        tie_word_embeddings=True,
    ),
    "llama-biased": variant("llama", attention_bias=True, mlp_bias=True),
    "llama-3": variant("llama", rope_parameters=LLAMA3),
    "llama-linear": variant("llama", rope_parameters=rope("linear")),
    "llama-yarn": variant("llama", rope_parameters=YARN),
    "mistral": variant("mistral"),
    "mistral-full": variant("mistral", sliding_window=None),
    "qwen2": variant("qwen2"),
    "qwen2-windows": variant(
        "qwen2",
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=2,
        tie_word_embeddings=True,
    ),
    "qwen3": variant("qwen3"),
    "qwen3-odd": variant("qwen3", hidden_act="relu", attention_bias=True, rms_norm_eps=1e-3),
    "olmo2": variant("olmo2"),
    "olmo3": variant("olmo3"),
    "olmo3-yarn": variant(
        "olmo3", rope_parameters={"full_attention": YARN, "sliding_attention": PLAIN}
    ),
    "gemma2": variant("gemma2", query_pre_attn_scalar=20, final_logit_softcapping=3.0),
    "gemma3": variant("gemma3_text"),
    "gemma3-equal": variant(
        "gemma3_text",
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={"full_attention": PLAIN, "sliding_attention": PLAIN},
    ),
    "gemma3-odd": variant(
        "gemma3_text",
        query_pre_attn_scalar=20,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={"full_attention": rope("linear"), "sliding_attention": PLAIN},
    ),
    "smollm3": variant("smollm3"),
    "smollm3-odd": variant("smollm3", no_rope_layers=[0, 1, 1, 0], tie_word_embeddings=False),
    "mixtral": variant("mixtral"),
    "mixtral-windows": variant("mixtral", sliding_window=6, num_experts_per_tok=1),
    "qwen3_moe": variant("qwen3_moe"),
    "qwen3_moe-odd": variant(
        "qwen3_moe", norm_topk_prob=True, use_sliding_window=True, sliding_window=6
    ),
    "qwen3_next": variant("qwen3_next"),
    "qwen3_next-odd": variant(
        "qwen3_next",
        attention_bias=True,
        norm_topk_prob=False,
        rms_norm_eps=1e-3,
        tie_word_embeddings=True,
        layer_types=["full_attention", "linear_attention"] * 2,
        linear_num_key_heads=4,
        linear_conv_kernel_dim=3,
        rope_parameters={**YARN, "partial_rotary_factor": 0.5},
    ),
    "qwen3_next-full": variant("qwen3_next", layer_types=["full_attention"] * 4),
    "gpt_neox": variant("gpt_neox"),
    "gpt_neox-sequential": variant(
        "gpt_neox",
        use_parallel_residual=False,
        hidden_act="gelu_new",
        attention_bias=False,
        rope_parameters={**PLAIN, "partial_rotary_factor": 0.5},
    ),
    "mamba2": variant("mamba2"),
    "mamba2-biased": variant("mamba2", use_bias=True, tie_word_embeddings=True),
}


class Exact:
    """A model of theirs in float64, without its casts to float32.

    Args:
        folder: the folder of the model.
    """

    def __init__(self, folder: Path) -> None:
        with Float64():  # buffers are also computed in float64
            self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **EAGER)

    def __call__(self, tokens: Tensor, **inputs: Any) -> Any:
        """Return the logits."""
        with Float64():
            return self.model(tokens, **inputs).logits
