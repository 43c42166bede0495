import pytest
import torch
import torch.nn.functional as F

from llm.losses import cross_entropy, cross_entropy_sum


@pytest.fixture
def logits():
    return torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0)) * 4


@pytest.fixture
def targets():
    targets = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(1))
    targets[0, :3] = -100
    targets[2, 4] = -100
    return targets


def test_equals_torch_with_ignored_targets(logits, targets):
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(cross_entropy(logits, targets), expected)


def test_equals_the_definition_in_float64(logits, targets):
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


def test_gradient_equals_torch(logits, targets):
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    cross_entropy(ours, targets).backward()
    F.cross_entropy(theirs.flatten(0, 1), targets.flatten(), ignore_index=-100).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_nothing_asked_is_zero_with_a_zero_gradient(logits):
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
    parts = [cross_entropy_sum(row, asked) for row, asked in zip(logits, targets, strict=True)]
    total, count = (torch.stack(column).sum() for column in zip(*parts, strict=True))
    assert total.dtype == torch.float64
    assert count.item() == 11
    torch.testing.assert_close((total / count).float(), cross_entropy(logits, targets))


def test_sum_does_not_wear_out_over_many_tokens():
    """Four million equal losses: a float32 sum one by one would be far off."""
    tokens = 1 << 22
    total, count = cross_entropy_sum(torch.zeros(tokens, 2), torch.zeros(tokens, dtype=torch.long))
    expected = tokens * float(torch.tensor(2.0).log())
    assert count.item() == tokens
    assert abs(total.item() - expected) < 1e-6 * tokens**0.5


def test_one_confident_miss_stays_finite():
    total, _ = cross_entropy_sum(torch.tensor([[0.0, 500.0]]), torch.tensor([0]))
    assert total.item() == pytest.approx(500)
