"""Activation functions, compared with their formulas, also under autocast."""

import math

import pytest
import torch

from llm.nn import activations

X = torch.linspace(-6, 6, 49, dtype=torch.float64)
FORMULAS = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "relu_squared": lambda x: max(x, 0.0) ** 2,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_each_activation_follows_its_formula(name):
    found = getattr(activations, name)(X)
    assert found.tolist() == pytest.approx([FORMULAS[name](x) for x in X.tolist()], abs=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
def test_each_activation_has_the_gradient_of_its_formula(name):
    """By finite differences of the formula, except at 0, where some are not differentiable."""
    x = X[X != 0].clone().requires_grad_()
    getattr(activations, name)(x).sum().backward()
    h, formula = 1e-6, FORMULAS[name]
    slopes = [(formula(each + h) - formula(each - h)) / (2 * h) for each in x.tolist()]
    assert x.grad.tolist() == pytest.approx(slopes, abs=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_each_activation_stays_in_bfloat16_under_autocast(name):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert getattr(activations, name)(X.bfloat16()).dtype == torch.bfloat16
