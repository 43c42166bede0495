"""Metrics that several processes compute together equal those of one process."""

from typing import Any

import pytest
import torch
from ranks import on_ranks

from llm import distributed
from llm.evaluation.classification_metrics import Probabilities, WeightedLoss, confusion, scores
from llm.evaluation.perplexity import Perplexity
from llm.evaluation.running_mean import Means


def measure(rows: slice | None = None) -> dict[str, Any]:
    """Return the value of each metric over seven texts and two rows of padding, divided over the processes.

    As in a run, the first rank has six rows, and the second has three: one text and the two rows of padding.
    """
    if rows is None:
        distributed.join_ranks("cpu")
        rows = slice(0, 6) if distributed.is_first() else slice(6, 9)
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 2, generator=draw)
    labels = torch.randint(2, (9,), generator=draw)
    labels[7:] = -100
    tokens, targets = torch.randn(9, 3, 5, generator=draw), torch.randint(5, (9, 3), generator=draw)
    targets[7:] = -100
    logits, labels, number = logits[rows], labels[rows], torch.arange(9)[rows]
    mask = labels != -100

    shares, matrix, answers = scores(2), confusion(2), Probabilities()
    loss, means, perplexity = WeightedLoss(), Means(("loss", "margin")), Perplexity()
    shares.update(logits.argmax(-1), labels)
    matrix.update(logits.argmax(-1), labels)
    answers.update(number, labels, logits=logits)
    loss.update((logits[:, 0] * mask).sum(), mask.sum().float())
    means.update({"loss": logits[:, 0], "margin": logits[:, 1]}, mask)
    perplexity.update(tokens[rows], targets[rows])
    found, probabilities = answers.compute()
    order = found.argsort()
    return {
        "scores": {name: value.item() for name, value in shares.compute().items()},
        "confusion": matrix.compute().tolist(),
        "rows": found[order].tolist(),
        "probabilities": probabilities[order].tolist(),
        "loss": float(loss.compute()),
        "means": means.compute(),
        "perplexity": perplexity.compute(),
    }


def test_metrics_of_two_processes_equal_those_of_one():
    alone = measure(slice(None))
    for found in on_ranks(2, measure):
        assert found["rows"] == alone["rows"] == list(range(7))
        assert found["confusion"] == alone["confusion"]
        assert found["probabilities"] == alone["probabilities"]
        for name in ("scores", "means", "perplexity"):
            assert found[name] == pytest.approx(alone[name], rel=1e-6), name
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-6)
