"""Values mixed with those of the first layer."""

from functools import partial

import pytest
import torch
from torch import nn

from llm.nn.attention import Attention, naive_attention
from llm.nn.context import Context
from llm.nn.feed_forward import FeedForward
from llm.nn.layer_schedule import Layer
from llm.nn.lstm import LSTM
from llm.nn.masks import causal
from llm.nn.norms import RMSNorm
from llm.nn.positions import NoPosition
from llm.nn.residual import pre_norm
from llm.nn.stack import Stack
from llm.nn.value_residual import ValueResidual
from llm.optim.groups import decay_matrices

DIM, LENGTH = 8, 5
MIXED = partial(Attention, num_heads=2, value_residual=ValueResidual)
BASE = Layer(
    attention=MIXED,
    feed_forward=partial(FeedForward, hidden_dim=8),
    norm=RMSNorm,
    residual=pre_norm,
)


def stack(*pattern: str, **kinds: Layer) -> Stack:
    torch.manual_seed(0)
    made = Stack(DIM, len(pattern), layer=BASE, layers=kinds, pattern=pattern)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made.double()


def test_three_layers_equal_the_equations():
    """Every layer adds the first layer's values, not those of the layer before it, and not mixed ones."""
    layers = stack("a", "a", "a", a=Layer())
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    context = Context(position=NoPosition(), mask=causal, positions=slice(0, LENGTH))
    actual = layers(x, context)
    first = None
    for block in layers:
        attention = block.attention
        projected = attention.query_key_value(block.attention_norm(x)).chunk(3, dim=-1)
        query, key, value = (p.unflatten(-1, (2, -1)).transpose(1, 2) for p in projected)
        if first is None:
            first = value
        else:
            weights = attention.value_residual.weight
            value = weights[0] * first + weights[1] * value
        heads = naive_attention(query, key, value, causal=True)
        x = x + attention.output(heads.transpose(1, 2).flatten(2))
        x = x + block.feed_forward(block.feed_forward_norm(x))
    torch.testing.assert_close(actual, x, rtol=0, atol=1e-12)


def test_the_first_attention_layer_has_no_factors():
    """A layer without values is not the first, and a layer without factors may be."""
    layers = stack("lstm", "a", "a", lstm=Layer(attention=LSTM), a=Layer())
    assert [link and link.layer for link in layers.links] == [None, None, 1]
    assert layers[1].attention.value_residual is None
    plain = Layer(attention=partial(Attention, num_heads=2))
    layers = stack("plain", "a", plain=plain, a=Layer())
    assert layers.links[1] == (0, "values")


def test_equal_factors_of_equal_values_are_the_plain_layer():
    layers, x = stack("a", "a", a=Layer()), torch.randn(1, 3, LENGTH, 4)
    assert layers[0].attention.value_residual is None
    torch.testing.assert_close(ValueResidual()(x, first=x), x)
    mixed = ValueResidual(first=0.25, own=2.0)
    nn.init.zeros_(mixed.weight)
    mixed.reset_parameters()
    torch.testing.assert_close(mixed(x, first=2 * x), 2.5 * x)


def test_factors_are_vectors_for_the_optimizer():
    groups = {
        group["name"]: group
        for group in decay_matrices(nn.ModuleDict({"blocks": stack("a", "a", a=Layer())}))
    }
    sizes = [parameter.numel() for parameter in groups["vector"]["params"]]
    assert 2 in sizes
    assert groups["vector"]["weight_decay"] == 0


def test_heads_of_another_shape_are_refused():
    other = Layer(attention=partial(MIXED, num_kv_heads=1))
    message = (
        "layers: b is layer 2, and value_residual adds the values of layer 1, 2 heads of width 4, to 1 heads of width "
        "4; give both layers the same num_kv_heads and head_dim"
    )
    with pytest.raises(ValueError, match=message):
        stack("a", "b", a=Layer(), b=other)
