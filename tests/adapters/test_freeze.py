"""Training of a part of a model's own parameters, without added ones."""

import pytest
import torch
from torch import nn

from llm.adapters.base import adapter_state
from llm.adapters.freeze import Head, LastBlock
from llm.models.classifier import Classifier


def trainable(model: nn.Module) -> set[str]:
    return set(adapter_state(model))


@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_last_block_trains_the_last_block_and_the_final_norm(build, preset):
    model = build(f"model={preset}")
    LastBlock().apply(model)
    expected = {n for n in dict(model.named_parameters()) if n.startswith(("blocks.1.", "final_"))}
    assert trainable(model) == expected


def test_last_block_also_trains_the_new_head_of_a_classifier(build):
    model = Classifier(build(), 3)
    LastBlock().apply(model, new=["head.weight", "head.bias"])
    prefixes = ("body.blocks.1.", "body.final_norm.", "head.")
    assert trainable(model) == {n for n, _ in model.named_parameters() if n.startswith(prefixes)}


def test_last_block_applies_to_a_model_without_a_final_norm(build):
    model = build("model=gpt2", "model/residual=post_norm")
    LastBlock().apply(model)
    assert {name.split(".")[1] for name in trainable(model)} == {"1"}


def test_head_trains_only_the_head(build):
    for model in (Classifier(build(), 3), build("model=gpt2", "model.tie_weights=false")):
        Head().apply(model)
        assert trainable(model) == {n for n, _ in model.named_parameters() if n.startswith("head.")}


def test_tied_head_is_trained_as_the_embedding(build):
    model = build("model=gpt2")
    Head().apply(model)
    assert trainable(model) == {"embedding.weight"}
    assert model.head.weight is model.embedding.weight


@pytest.mark.parametrize("adapter", [LastBlock, Head])
def test_frozen_parameters_stay_bit_identical(build, train, adapter):
    model = build("model=gpt2")
    adapter().apply(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = [train(model, 3, rate=1e-2, steps=steps) for steps in (1, 40)]
    assert losses[1] < 0.8 * losses[0]
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert changed - {"head.weight"} == trainable(model)


def test_models_without_blocks_or_a_head_are_refused():
    with pytest.raises(ValueError, match="needs blocks, and Linear has none"):
        LastBlock().apply(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="needs a head, and Linear has none"):
        Head().apply(nn.Linear(2, 2))
