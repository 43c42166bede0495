"""Logged metrics of pairs: equal weight for each pair, none for pairs without targets."""

from functools import partial

import pytest
import torch

from llm.models.classifier import Classifier
from llm.optim.groups import decay_matrices
from llm.optim.schedules import constant
from llm.tasks.reward import Reward


@pytest.fixture
def task(build):
    model = Classifier(build(), 1)
    torch.nn.init.normal_(model.head.weight)
    optimizer = partial(torch.optim.SGD, lr=0.1)
    return Reward(
        model,
        optimizer=optimizer,
        schedule=constant,
        parameter_groups=decay_matrices,
        label_smoothing=0.1,
    ).eval()


def batch_of(pairs, blank=0):
    """Return chosen rows, then rejected ones; the last `blank` pairs have no targets."""
    rows = 2 * (pairs + blank)
    tokens = torch.randint(97, (rows, 6), generator=torch.Generator().manual_seed(pairs))
    targets = tokens.clone()
    targets.view(2, pairs + blank, 6)[:, pairs:] = -100
    return {"tokens": tokens, "targets": targets, "attention_mask": torch.ones(rows, 6).bool()}


def test_metrics_are_means_over_pairs(task):
    first, second = batch_of(5), batch_of(2)
    margins = torch.cat(
        [-task.rewards(batch).view(2, -1).diff(dim=0)[0] for batch in (first, second)]
    )
    for batch in (first, second):
        task.evaluate(batch)
    results = task.results()
    assert results["margin"] == pytest.approx(margins.mean().item(), rel=1e-5)
    assert results["accuracy"] == pytest.approx((margins > 0).float().mean().item())
    assert results["chosen_reward"] - results["rejected_reward"] == pytest.approx(
        results["margin"], rel=1e-4
    )
    right, wrong = margins.sigmoid().log(), (-margins).sigmoid().log()
    expected = -(0.9 * right + 0.1 * wrong).mean().item()
    assert results["loss"] == pytest.approx(expected, rel=1e-5)


def test_pairs_without_targets_do_not_count(task):
    batch = batch_of(3, blank=2)
    kept = torch.tensor([0, 1, 2, 5, 6, 7])
    task.evaluate(batch)
    found = task.results()
    task.evaluate({name: tensor[kept] for name, tensor in batch.items()})
    assert found == pytest.approx(task.results(), rel=1e-5)  # sums of float32 in another order


def test_training_metrics_are_means_since_the_last_call(task):
    task.step(batch_of(4))
    first = task.training_metrics()
    task.step(batch_of(3))
    second = task.training_metrics()
    task.step(batch_of(4))
    assert task.training_metrics() == pytest.approx(first)
    assert first.keys() == {"accuracy", "margin", "chosen_reward", "rejected_reward"}
    assert first != second
