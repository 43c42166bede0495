"""Training of some parameters of a model without added ones."""

import pytest
import torch
from torch import nn

from llm.adapters.base import adapter_state
from llm.adapters.freeze import Head, LastBlock
from llm.models.classifier import Classifier


def learning(model: nn.Module) -> set[str]:
    return set(adapter_state(model))


@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_the_last_block_and_the_final_norm_learn(build, preset):
    model = build(f"model={preset}")
    LastBlock().apply(model)
    expected = {n for n in dict(model.named_parameters()) if n.startswith(("blocks.1.", "final_"))}
    assert learning(model) == expected


def test_in_a_classifier_the_new_head_learns_too(build):
    model = Classifier(build(), 3)
    LastBlock().apply(model, new=["head.weight", "head.bias"])
    prefixes = ("body.blocks.1.", "body.final_norm.", "head.")
    assert learning(model) == {n for n, _ in model.named_parameters() if n.startswith(prefixes)}


def test_a_model_without_a_final_norm_has_a_last_block(build):
    model = build("model=gpt2", "model/residual=post_norm")
    LastBlock().apply(model)
    assert {name.split(".")[1] for name in learning(model)} == {"1"}


def test_the_head_learns_alone(build):
    for model in (Classifier(build(), 3), build("model=gpt2", "model.tie_weights=false")):
        Head().apply(model)
        assert learning(model) == {n for n, _ in model.named_parameters() if n.startswith("head.")}


def test_a_tied_head_learns_as_the_embedding(build):
    model = build("model=gpt2")
    Head().apply(model)
    assert learning(model) == {"embedding.weight"}
    assert model.head.weight is model.embedding.weight


@pytest.mark.parametrize("adapter", [LastBlock, Head])
def test_what_is_frozen_stays_to_the_bit(build, train, adapter):
    model = build("model=gpt2")
    adapter().apply(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = [train(model, 3, rate=1e-2, steps=steps) for steps in (1, 40)]
    assert losses[1] < 0.8 * losses[0]
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert changed - {"head.weight"} == learning(model)


def test_models_without_the_part_are_refused():
    with pytest.raises(ValueError, match="needs blocks, and Linear has none"):
        LastBlock().apply(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="needs a head, and Linear has none"):
        Head().apply(nn.Linear(2, 2))
