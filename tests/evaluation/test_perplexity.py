"""Perplexity over a validation part is a mean over all tokens, not a mean of the batches' means."""

import math

import pytest
import torch
from torch.nn import functional as F

from llm.evaluation.perplexity import Perplexity


def test_perplexity_over_batches_equals_torch_over_all_tokens():
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 7, 11), torch.randint(11, (6, 7))
    targets[4:, 3:] = -100
    metric = Perplexity(bytes_per_token=2.5)
    for rows in (slice(0, 1), slice(1, 6)):  # batches of different sizes
        metric.update(logits[rows], targets[rows])
    expected = F.cross_entropy(logits.double().flatten(0, 1), targets.flatten()).item()
    found = metric.compute()
    assert found["loss"] == pytest.approx(expected, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(expected / math.log(2) / 2.5, rel=1e-6)


def test_one_confident_miss_is_not_infinite():
    logits = torch.zeros(1, 1000, 5)
    logits[0, 0, 1] = 1000.0  # certain of the wrong token
    metric = Perplexity()
    metric.update(logits, torch.zeros(1, 1000, dtype=torch.int64))
    assert metric.compute()["loss"] == pytest.approx((1000 + 999 * math.log(5)) / 1000, rel=1e-6)


def test_bits_per_byte_are_left_out_without_bytes_per_token():
    metric = Perplexity()
    metric.update(torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.int64))
    assert set(metric.compute()) == {"loss", "perplexity"}
