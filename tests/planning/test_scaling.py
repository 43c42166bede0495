"""Scaling laws: their optimum is an optimum, and published values are reproduced."""

import numpy as np
import pytest

from llm.planning.scaling import BESIROGLU, HOFFMANN, twenty_tokens


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU])
@pytest.mark.parametrize("flops", [1e17, 1e21, 5.76e23])
def test_no_other_division_of_the_budget_has_a_lower_loss(law, flops):
    parameters, tokens = law.optimum(flops)
    assert 6 * parameters * tokens == pytest.approx(flops)
    others = parameters * np.geomspace(0.1, 10, 201)
    losses = [law.loss(n, flops / 6 / n) for n in others.tolist()]
    assert np.argmin(losses) == 100  # the optimum itself, in the middle
    assert min(losses) == pytest.approx(law.loss(parameters, tokens))


def test_the_refit_lands_near_chinchilla_and_the_published_fit_does_not():
    """Chinchilla: 70 billion parameters, 1.4 trillion tokens, 5.76e23 FLOPs; twenty tokens per parameter."""
    parameters, tokens = BESIROGLU.optimum(5.76e23)
    assert 60e9 < parameters < 80e9
    assert 18 < tokens / parameters < 23
    parameters, tokens = HOFFMANN.optimum(5.76e23)
    assert tokens / parameters > 50
    assert twenty_tokens(5.76e23) == pytest.approx((69.3e9, 1.386e12), rel=1e-3)
