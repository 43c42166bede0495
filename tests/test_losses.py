import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm.losses import (
    cross_entropy,
    cross_entropy_sum,
    group_advantages,
    implicit_rewards,
    kl_estimate,
    policy_gradient_loss,
    ranking_loss,
    sequence_log_probabilities,
    token_log_probabilities,
)


@pytest.fixture
def logits():
    return torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0)) * 4


@pytest.fixture
def targets():
    targets = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(1))
    targets[0, :3] = -100
    targets[2, 4] = -100
    return targets


def test_cross_entropy_equals_torch_with_ignored_targets(logits, targets):
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(cross_entropy(logits, targets), expected)


def test_cross_entropy_equals_its_definition_in_float64(logits, targets):
    logits = logits.double()
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    losses = [
        -probabilities[b, t, targets[b, t]].log()
        for b in range(3)
        for t in range(5)
        if targets[b, t] != -100
    ]
    expected = torch.stack(losses).mean()
    loss = cross_entropy(logits, targets)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)


def test_cross_entropy_gradient_equals_torch(logits, targets):
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    cross_entropy(ours, targets).backward()
    F.cross_entropy(theirs.flatten(0, 1), targets.flatten(), ignore_index=-100).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_loss_without_targets_is_zero_with_a_zero_gradient(logits):
    logits.requires_grad_()
    loss = cross_entropy(logits, torch.full((3, 5), -100))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_to_float32(logits, targets, dtype):
    half = logits.to(dtype)
    loss = cross_entropy(half, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(half.float(), targets), rtol=0, atol=0)


def test_sums_over_batches_give_the_mean_over_all(logits, targets):
    parts = [cross_entropy_sum(row, target) for row, target in zip(logits, targets, strict=True)]
    total, count = (torch.stack(column).sum() for column in zip(*parts, strict=True))
    assert total.dtype == torch.float64
    assert count.item() == 11
    torch.testing.assert_close((total / count).float(), cross_entropy(logits, targets))


def test_sum_stays_accurate_over_many_tokens():
    """Four million equal losses: a running sum in float32 would be inaccurate."""
    tokens = 1 << 22
    total, count = cross_entropy_sum(torch.zeros(tokens, 2), torch.zeros(tokens, dtype=torch.long))
    expected = tokens * float(torch.tensor(2.0).log())
    assert count.item() == tokens
    assert abs(total.item() - expected) < 1e-6 * tokens**0.5


def test_one_confident_miss_stays_finite():
    total, _ = cross_entropy_sum(torch.tensor([[0.0, 500.0]]), torch.tensor([0]))
    assert total.item() == pytest.approx(500)


def test_probability_of_a_sequence_is_the_product_over_its_tokens(logits, targets):
    probabilities = logits.double().softmax(-1)
    for row in range(3):
        tokens = [(t, targets[row, t]) for t in range(5) if targets[row, t] != -100]
        product = math.prod(probabilities[row, t, token].item() for t, token in tokens)
        summed = sequence_log_probabilities(logits, targets)[row].item()
        assert math.exp(summed) == pytest.approx(product, rel=1e-5)
        mean = sequence_log_probabilities(logits, targets, reduction="mean")[row].item()
        assert mean == pytest.approx(summed / len(tokens), rel=1e-6)


def test_sequence_without_targets_has_log_probability_zero_and_no_gradient(logits, targets):
    targets[1] = -100
    logits.requires_grad_()
    for reduction in ("sum", "mean"):
        found = sequence_log_probabilities(logits, targets, reduction=reduction)
        assert found[1].item() == 0
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert gradient[1].abs().max() == 0 < gradient[0].abs().max()


@pytest.fixture
def four_log_probabilities():
    """Log-probabilities of six pairs in float64: policy and reference, chosen and rejected."""
    generator = torch.Generator().manual_seed(3)
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    return {n: -60 * torch.rand(6, generator=generator, dtype=torch.float64) for n in names}


def dpo_loss(log_probabilities, *, beta, label_smoothing=0.0):
    """Return the ranking loss of implicit rewards, as the DPO task computes it."""
    chosen, rejected = (
        implicit_rewards(
            log_probabilities[f"policy_{which}"], log_probabilities[f"reference_{which}"], beta=beta
        )
        for which in ("chosen", "rejected")
    )
    return ranking_loss(chosen, rejected, label_smoothing=label_smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_loss_equals_equation_7_of_the_paper(four_log_probabilities, beta, smoothing):
    """The expected value is the log-sigmoid of the paper's difference of log-ratios, in numpy."""
    policy_w, policy_l, reference_w, reference_l = (
        x.numpy() for x in four_log_probabilities.values()
    )
    inner = beta * (policy_w - reference_w) - beta * (policy_l - reference_l)
    kept = -np.log(1 / (1 + np.exp(-inner)))
    flipped = -np.log(1 / (1 + np.exp(inner)))
    expected = (1 - smoothing) * kept + smoothing * flipped
    found = dpo_loss(four_log_probabilities, beta=beta, label_smoothing=smoothing)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_the_gradient_of_dpo_is_that_of_the_paper(four_log_probabilities):
    """Section 4 of the paper: -beta sigma(r_l - r_w) (d log pi(y_w) - d log pi(y_l))."""
    beta = 0.3
    chosen, rejected = (x.requires_grad_() for x in [*four_log_probabilities.values()][:2])
    dpo_loss(four_log_probabilities, beta=beta).sum().backward()
    implied = [
        beta
        * (four_log_probabilities[f"policy_{which}"] - four_log_probabilities[f"reference_{which}"])
        for which in ("chosen", "rejected")
    ]
    weight = beta * torch.sigmoid(implied[1] - implied[0]).detach()
    torch.testing.assert_close(chosen.grad, -weight)
    torch.testing.assert_close(rejected.grad, weight)


def test_ranking_loss_follows_the_bradley_terry_model():
    """exp(-loss) is the probability e^a / (e^a + e^b) that the chosen response is preferred."""
    chosen, rejected = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([1.0, 0.0, 3.0])
    expected = chosen.exp() / (chosen.exp() + rejected.exp())
    torch.testing.assert_close((-ranking_loss(chosen, rejected)).exp(), expected)
    assert ranking_loss(chosen, chosen).tolist() == pytest.approx([math.log(2)] * 3)


def test_label_smoothing_puts_the_minimum_of_the_ranking_loss_at_a_finite_margin():
    margins = torch.linspace(-8, 8, 1601)
    best = margins[ranking_loss(margins, torch.zeros_like(margins), label_smoothing=0.1).argmin()]
    assert best.item() == pytest.approx(math.log(0.9 / 0.1), abs=0.02)
    assert ranking_loss(torch.tensor([-900.0]), torch.tensor([0.0])).item() == 900, "no overflow"


def test_advantages_are_relative_to_the_group():
    rewards = torch.tensor([[1.0, 2.0, 3.0, 6.0], [10.0, 20.0, 30.0, 60.0], [5.0, 5.0, 5.0, 5.0]])
    found = group_advantages(rewards)
    expected = (rewards[0] - 3) / rewards[0].std()
    torch.testing.assert_close(found[0], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(found[1], found[0], atol=1e-3, rtol=0)
    assert torch.equal(found[2], torch.zeros(4))


def test_the_gradient_of_the_policy_loss_is_that_of_reinforce(logits, targets):
    """The expected gradient is minus the advantage times the score function, averaged over the tokens of the mask."""
    advantages, mask = torch.tensor([2.0, -1.0, 0.5]), targets != -100
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    policy_gradient_loss(
        token_log_probabilities(ours, targets), advantages=advantages, mask=mask
    ).backward()
    summed = sequence_log_probabilities(theirs, targets)
    (-(advantages * summed).sum() / mask.sum()).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_kl_estimate_is_unbiased_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 7, generator=generator).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    each = kl_estimate(policy, reference)
    assert (each >= 0).all()
    torch.testing.assert_close((policy.exp() * each).sum(), exact)
    assert kl_estimate(policy, policy).abs().max() == 0
