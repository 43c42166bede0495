"""Loading of models for the commands that do not train."""

from dataclasses import replace
from unittest.mock import create_autospec

import pytest
import torch
from torch import nn

from llm.config.errors import ConfigError
from llm.generation.model_loading import (
    autocast,
    load_language_model,
    place_model,
    report_truncation,
    use_hardware,
)
from llm.hardware import Hardware
from llm.models.classifier import Classifier
from llm.nn.stacked_linear import StackedLinear
from llm.weights.base import Weights


def test_classifier_is_refused_for_generation(build):
    hardware = Hardware(accelerator="cpu", precision=32)
    model = build()
    weights = create_autospec(Weights, instance=True, path="outputs/x")
    weights.model.return_value = model
    assert load_language_model(weights, hardware) is model
    weights.model.return_value = Classifier(model, num_classes=1)
    with pytest.raises(ConfigError, match="outputs/x is a classifier or a reward model and cannot"):
        load_language_model(weights, hardware)


@pytest.mark.parametrize("model", ["gpt2", "llama", "mixtral"])
def test_matrices_are_converted_to_bf16_once_and_logits_stay_equal(build, model):
    hardware = Hardware(accelerator="cpu", precision="bf16")
    network = build(f"model={model}").eval()
    tokens = torch.arange(12).reshape(2, 6)

    def logits() -> torch.Tensor:
        """Return the logits of two steps with a cache."""
        with torch.inference_mode(), autocast(hardware):
            cache = network.new_cache(2)
            return torch.cat([network(part, cache=cache) for part in tokens.split(3, dim=1)], dim=1)

    before = logits()
    assert place_model(network, hardware) is network
    assert torch.equal(logits(), before)
    kinds = nn.Linear | StackedLinear
    linear = [layer for layer in network.modules() if isinstance(layer, kinds)]
    assert {parameter.dtype for layer in linear for parameter in layer.parameters()} == {
        torch.bfloat16
    }
    assert network.embedding.weight.dtype == torch.float32  # a lookup is not rounded


def test_loaded_language_model_stores_its_matrices_by_columns(build):
    """The head stays tied to the embedding, and the logits are equal."""
    network = build("model=gpt2").eval()
    tokens = torch.arange(12).reshape(2, 6)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = network(tokens)
    weights = create_autospec(Weights, instance=True, path="outputs/x")
    weights.model.return_value = network
    load_language_model(weights, Hardware(accelerator="cpu", precision=32))
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert all(layer.weight.stride(0) == 1 for layer in linear)
    assert network.head.weight is network.embedding.weight
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    torch.testing.assert_close(network(tokens), before)


def test_loading_does_not_change_the_random_state(build, monkeypatch):
    weights = create_autospec(Weights, instance=True, path="outputs/x")
    weights.model.side_effect = build
    state = torch.get_rng_state()
    load_language_model(weights, Hardware(accelerator="cpu", precision=32))
    assert torch.equal(torch.get_rng_state(), state)


def test_hardware_is_resolved_and_its_threads_are_used():
    threads = torch.get_num_threads()
    hardware = Hardware(accelerator="cpu", precision=32, threads=threads + 1)
    try:
        assert use_hardware(hardware).accelerator == "cpu"
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(ConfigError, match=r"hardware\.precision=fp16 needs a GPU"):
        use_hardware(replace(hardware, precision="fp16"))


@pytest.mark.parametrize(
    ("lengths", "which", "read"),
    [([100], "100 tokens", 36), ([3, 70, 65], "2 of 3 prompts", 38)],
)
def test_a_truncated_prompt_is_reported(build, capsys, lengths, which, read):
    report_truncation(build("size.context_length=64"), [[1] * length for length in lengths])
    assert capsys.readouterr().err == (
        f"note: prompt: {which}, more than the model's context of 64; of the longest the last {read} tokens are read\n"
    )


def test_a_prompt_that_fits_is_not_reported(build, capsys):
    report_truncation(build("size.context_length=64"), [[1] * 64, [1]])
    assert capsys.readouterr().err == ""
