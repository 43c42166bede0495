"""Means over examples do not depend on the division into batches."""

import math

import pytest
import torch

from llm.evaluation.running_mean import Means


def test_examples_have_equal_weight_in_batches_of_any_size():
    values = torch.randn(7, generator=torch.Generator().manual_seed(0))
    means = Means(["a", "b"])
    for part in values.split([1, 4, 2]):
        means.update({"a": part, "b": part * 2, "not asked for": part})
    expected = values.double().mean().item()
    assert means.compute() == {"a": pytest.approx(expected), "b": pytest.approx(2 * expected)}


def test_masked_examples_do_not_count():
    means = Means(["a"])
    means.update({"a": torch.tensor([1.0, 100.0, 3.0])}, torch.tensor([True, False, True]))
    assert means.compute() == {"a": 2.0}
    means.reset()
    with pytest.warns(UserWarning, match="called before"):  # by torchmetrics
        assert math.isnan(means.compute()["a"])


def test_a_restored_mean_continues_from_the_saved_sums():
    first, second = Means(["a"]), Means(["a"])
    first.update({"a": torch.tensor([1.0, 2.0])})
    second.restore(first.state)
    second.update({"a": torch.tensor([6.0])})
    assert second.compute() == {"a": 3.0}
    assert first.compute() == {"a": 1.5}, "the state was copied"
