import math

import pytest
import torch
import torch.nn.functional as F

from llm.nn import activations
from llm.nn.feed_forward import FeedForward, GatedFeedForward

X = torch.linspace(-4, 4, 101, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
        (
            "gelu_tanh",
            lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
        ("relu", lambda x: max(x, 0.0)),
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("relu_squared", lambda x: max(x, 0.0) ** 2),
    ],
)
def test_activations_equal_their_formulas(name, formula):
    expected = torch.tensor([formula(x) for x in X.tolist()], dtype=torch.float64)
    torch.testing.assert_close(getattr(activations, name)(X), expected)


def test_feed_forward_equals_two_projections():
    torch.manual_seed(0)
    layer = FeedForward(8, activation=F.relu)
    x = torch.randn(2, 3, 8)
    hidden = (x @ layer.input.weight.T + layer.input.bias).clamp(min=0)
    torch.testing.assert_close(layer(x), hidden @ layer.output.weight.T + layer.output.bias)
    assert layer.input.out_features == 32


def test_gated_feed_forward_equals_three_projections():
    torch.manual_seed(0)
    layer = GatedFeedForward(8, hidden_dim=12, bias=False)
    x = torch.randn(2, 3, 8)
    hidden = F.silu(x @ layer.gate.weight.T) * (x @ layer.input.weight.T)
    torch.testing.assert_close(layer(x), hidden @ layer.output.weight.T)


@pytest.mark.parametrize(("dim", "hidden"), [(64, 192), (96, 256), (768, 2048), (4096, 10944)])
def test_gated_width_is_eight_thirds_of_dim_rounded_up(dim, hidden):
    assert GatedFeedForward(dim).input.out_features == hidden


@pytest.mark.parametrize("kind", [FeedForward, GatedFeedForward])
def test_dropout_acts_in_training_and_biases_are_optional(kind):
    torch.manual_seed(0)
    layer = kind(8, bias=True, dropout=0.5)
    x = torch.randn(2, 3, 8)
    assert (layer(x) == 0).any()
    assert not (layer.eval()(x) == 0).any()
    assert all(p.requires_grad for p in layer.parameters())
    assert {name.split(".")[-1] for name, _ in kind(8, bias=False).named_parameters()} == {"weight"}
