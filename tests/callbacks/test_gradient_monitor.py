"""Divergence and spikes of the gradient norm are reported; slow growth is not."""

import warnings

import lightning as L
import pytest
import torch
from torch import nn

from llm.callbacks.gradient_monitor import Gradients, require_finite
from llm.tasks.non_finite import DivergedError


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_parameter_that_is_not_finite_is_named(value):
    module = Module()
    require_finite(module, step=3)
    with torch.no_grad():
        module.model[1].weight[0, 1] = value
    with pytest.raises(DivergedError, match=r"1\.weight is not finite after step 3"):
        require_finite(module, step=3)


def test_a_spike_is_reported_and_slow_growth_is_not():
    watch = Gradients(spike=10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(20):
            watch._watch(1.0 + 0.3 * step, step)
    with pytest.warns(UserWarning, match="step 21: gradient norm"):
        watch._watch(500.0, 21)


def test_a_factor_of_one_or_less_is_refused():
    with pytest.raises(ValueError, match="spike=1"):
        Gradients(spike=1.0)
