"""Activation checkpointing."""

import pytest
import torch
from torch import nn

from llm.config.errors import ConfigError
from llm.planning.memory import KINDS, AllocationTracker
from llm.training.activation_checkpointing import checkpoint_activations


def test_model_without_blocks_is_refused():
    with pytest.raises(ConfigError, match="Linear has no attribute `blocks`; set it to false"):
        checkpoint_activations(nn.Linear(2, 2))


def linked(build, *words: str):
    """A model whose layers read earlier ones: values of the first, and keys and values of the layer before."""
    torch.manual_seed(0)
    return build("model=gpt", "model/attention=value_residual", "size.num_layers=4", *words)


def gradients(model, *batches: torch.Tensor) -> list[torch.Tensor]:
    """Return the gradients of the sum of the losses; all forward passes come before the backward pass."""
    losses = [model(tokens).square().mean() for tokens in batches]
    return list(torch.autograd.grad(sum(losses), [*model.parameters()]))


def test_gradients_through_earlier_layers_equal_those_without_checkpointing(build):
    """Also if another forward pass follows before the backward pass."""
    model = linked(build, "model/layers=shared_kv").double()
    batches = torch.arange(32).view(2, 16), torch.arange(40, 56).view(1, 16)
    expected = gradients(model, *batches)
    checkpoint_activations(model)
    torch.testing.assert_close(gradients(model, *batches), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("words", "plain", "extra"),
    [
        # Keys and values of two of the four layers, the values of the first of them among them.
        (
            ["model/layers=shared_kv"],
            ["model/layers=shared_kv", "~model.layers.shared.attention"],
            4,
        ),
        ([], [], 1),  # the values of the first layer
    ],
)
def test_only_what_later_layers_read_is_stored(build, words, plain, extra):
    plain, model = build("model=gpt", "size.num_layers=4", *plain), linked(build, *words)
    batch, length, width = 2, 16, plain.embedding.embedding_dim
    assert stored(model) - stored(plain) == extra * batch * length * width * 4


def stored(model) -> int:
    """Return the bytes of activations that are in memory after a forward pass."""
    checkpoint_activations(model)
    with AllocationTracker() as tracker:
        states = model.hidden_states(torch.arange(32).view(2, 16))
    assert states.requires_grad
    tracker.assign_kind("weights", model.parameters())
    return int(tracker.timeline().live[-1, KINDS.index("activations")])
