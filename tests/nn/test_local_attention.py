"""Attention in blocks of a window equals dense attention with the window's mask."""

import pytest
import torch
from torch.autograd import gradcheck

from llm.nn.attention import fused_attention, naive_attention
from llm.nn.local_attention import local_attention


def draw(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_blocks_equal_a_dense_mask_in_value_and_gradient(window, heads):
    number, groups = heads
    query, key, value = (
        draw(2, number, 13, 4),
        draw(2, groups, 13, 4),
        draw(2, groups, 13, 5)[..., :4],
    )
    found = []
    for compute in (naive_attention, fused_attention):
        inputs = [each.clone().requires_grad_() for each in (query, key, value)]
        out = compute(*inputs, causal=True, window=window)
        out.square().sum().backward()
        found.append([out, *(each.grad for each in inputs)])
    blocks = local_attention(query, key, value, window=window, kernel=naive_attention)
    torch.testing.assert_close(blocks, found[0][0], rtol=0, atol=1e-12)
    for ours, reference in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)


def test_gradient_equals_finite_differences():
    inputs = [draw(1, 2, 5, 3).requires_grad_() for _ in range(3)]
    assert gradcheck(lambda q, k, v: fused_attention(q, k, v, causal=True, window=2), inputs)


@pytest.mark.parametrize("window", [1, 3, 6, 40])
@pytest.mark.parametrize("queries", [1, 3])
def test_window_after_cached_keys_ends_at_the_last_key(window, queries):
    query, key, value = draw(1, 2, queries, 4), draw(1, 2, 9, 4), draw(1, 2, 9, 4)
    whole = naive_attention(draw(1, 2, 9, 4), key, value, causal=True, window=window)
    assert whole.isfinite().all()
    distance = torch.arange(9 - queries, 9)[:, None] - torch.arange(9)
    mask = (distance >= 0) & (distance < window)
    expected = naive_attention(query, key, value, mask=mask)
    for compute in (naive_attention, fused_attention):
        actual = compute(query, key, value, causal=True, window=window)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_work_grows_linearly_with_the_length(monkeypatch):
    """The largest matrix of scores has 2 W columns, whatever the length is."""
    widths = []

    def recording(query, key, value, **given):
        widths.append(query.shape[0] * query.shape[2] * key.shape[2])
        return naive_attention(query, key, value, **given)

    for length in (32, 64, 128):
        inputs = [draw(1, 2, length, 4) for _ in range(3)]
        local_attention(*inputs, window=8, kernel=recording)
    assert widths == [32 * 16, 64 * 16, 128 * 16]
