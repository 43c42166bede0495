"""Small models of Hugging Face's library with random weights, in folders."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hard_texts import hard_texts  # noqa: F401
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from llm.weights.gpt2 import GPT2Weights
from llm.weights.llama import LlamaWeights

VOCAB = 97


def gpt2(**changes: Any) -> GPT2LMHeadModel:
    sizes = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = GPT2Config(**{**sizes, "bos_token_id": 0, "eos_token_id": 0, **changes})
    return drawn(GPT2LMHeadModel(config))


def llama(**changes: Any) -> LlamaForCausalLM:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    config = LlamaConfig(**{**sizes, "bos_token_id": 0, "eos_token_id": 0, **changes})
    return drawn(LlamaForCausalLM(config))


def drawn(model: Any) -> Any:
    """Draw large weights (std 0.3), so that every part affects the logits."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


class Family(NamedTuple):
    """How models of one architecture are made by Hugging Face's library, and loaded here."""

    make: Callable[..., Any]
    weights: type
    changes: dict[str, Any]


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES = {
    "gpt2": Family(gpt2, GPT2Weights, {}),
    "gpt2-odd": Family(
        gpt2,
        GPT2Weights,
        {
            "n_inner": 48,
            "activation_function": "gelu",
            "layer_norm_epsilon": 1e-3,
            "tie_word_embeddings": False,
        },
    ),
    "llama": Family(llama, LlamaWeights, {}),
    "llama-grouped": Family(llama, LlamaWeights, {"num_key_value_heads": 2}),
    "llama-odd": Family(
        llama,
        LlamaWeights,
        {
            "num_key_value_heads": 1,
            "head_dim": 12,
            "hidden_act": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-3,
            "tie_word_embeddings": True,
        },
    ),
    "llama-3": Family(llama, LlamaWeights, {"rope_parameters": LLAMA3}),
}


@pytest.fixture(scope="session")
def families() -> dict[str, Family]:
    """All families, by name."""
    return FAMILIES


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="session")
def published(family: Family, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Any]:
    """A Hugging Face model, its folder, and our model loaded from this folder."""
    theirs = family.make(**family.changes)
    folder = tmp_path_factory.mktemp("published")
    theirs.save_pretrained(folder)
    return theirs, folder, family.weights(str(folder)).model()


@pytest.fixture
def theirs(published: Any) -> Any:
    return copy.deepcopy(published[0])


@pytest.fixture
def ours(published: Any) -> Any:
    return copy.deepcopy(published[2])


@pytest.fixture
def weights(family: Family, published: Any) -> Any:
    """The reader of the folder, which must not be written to."""
    return family.weights(str(published[1]))


def slowed(frequency: torch.Tensor, rope: dict[str, Any]) -> torch.Tensor:
    """Scale one frequency by the rule of Llama 3, as in its authors' code."""
    wavelength = 2 * math.pi / frequency
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    if wavelength < high:
        return frequency
    if wavelength > low:
        return frequency / rope["factor"]
    smooth = (low / wavelength * rope["low_freq_factor"] - rope["low_freq_factor"]) / (
        rope["high_freq_factor"] - rope["low_freq_factor"]
    )
    return (1 - smooth) * frequency / rope["factor"] + smooth * frequency


@pytest.fixture
def precise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute Hugging Face's Llama in the precision of the model.

    Its norms and its rotary embedding cast to float32 for any precision of the model; the comparison in
    float64 needs them without these casts.
    """

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (
            x / (x.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt()
        )

    def rotary(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        rope, width = self.config.rope_parameters, self.config.head_dim
        frequencies = rope["rope_theta"] ** -(torch.arange(0, width, 2, dtype=x.dtype) / width)
        if rope["rope_type"] == "llama3":
            frequencies = torch.stack([slowed(frequency, rope) for frequency in frequencies])
        angles = (position_ids[..., None].to(x.dtype) * frequencies).repeat(1, 1, 2)
        return angles.cos(), angles.sin()

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", rotary)
