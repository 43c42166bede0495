"""Attention in blocks of a window equals dense attention with the window's mask."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm.nn.attention import Attention, fused_attention, naive_attention
from llm.nn.context import Context
from llm.nn.local_attention import local_attention
from llm.nn.masks import RowLimits, sliding_window
from llm.nn.positions import NoPosition
from llm.nn.sinks import Sinks


def draw(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


REAL = torch.stack((torch.arange(13) >= 6, torch.arange(13) < 9))
DOCUMENTS = torch.tensor([[7] * 5 + [3] * 2 + [4] * 6, [0] * 13])
LIMITS = {
    "nothing": None,
    "padding": RowLimits(REAL),
    "documents": RowLimits(None, DOCUMENTS),
    "both": RowLimits(REAL, DOCUMENTS),
}
limited = pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@limited
def test_blocks_equal_a_dense_mask_in_value_and_gradient(window, heads, limits):
    number, groups = heads
    query, key, value = (
        draw(2, number, 13, 4),
        draw(2, groups, 13, 4),
        draw(2, groups, 13, 5)[..., :4],
    )
    found = []
    for compute in (naive_attention, fused_attention):
        inputs = [each.clone().requires_grad_() for each in (query, key, value)]
        out = compute(*inputs, mask=limits, causal=True, window=window)
        out.square().sum().backward()
        found.append([out, *(each.grad for each in inputs)])
    blocks = local_attention(
        query, key, value, window=window, limits=limits, kernel=naive_attention
    )
    torch.testing.assert_close(blocks, found[0][0], rtol=0, atol=1e-12)
    for ours, reference in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [1, 3, 20])
@limited
def test_sinks_in_blocks_equal_those_with_a_dense_mask(window, limits):
    sinks = Sinks(4).double()
    torch.nn.init.normal_(sinks.scores)
    inputs = [draw(2, heads, 13, 4).requires_grad_() for heads in (4, 2, 2)]
    query, key, value = inputs
    mask = limits and limits.dense(query)
    with_sinks = sinks.add_columns(query, key, value, mask=mask, causal=True, window=window)
    expected = naive_attention(query, *with_sinks[:2], mask=with_sinks[2])
    given = {"mask": limits, "causal": True, "window": window}
    found = sinks(query, key, value, kernel=naive_attention, **given)
    leaves, direction = [*inputs, sinks.scores], torch.randn_like(expected)
    torch.testing.assert_close(
        (found, *torch.autograd.grad(found, leaves, direction)),
        (expected, *torch.autograd.grad(expected, leaves, direction)),
        rtol=0,
        atol=1e-12,
    )


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


@pytest.mark.parametrize("sinks", [None, Sinks])
@pytest.mark.parametrize("given", ["nothing", "attention_mask", "document_ids"])
def test_no_tensor_of_a_layer_has_all_pairs_of_tokens(sinks, given):
    """The largest tensor grows with the length, not with its square."""
    layer, largest = Attention(8, 2, sinks=sinks), []
    for length in (64, 128, 256):
        x, ids = torch.randn(2, length, 8), torch.arange(length).expand(2, -1) // 50
        values = {"attention_mask": ids > 0, "document_ids": ids}
        context = Context(
            position=NoPosition(),
            mask=sliding_window(8),
            positions=slice(0, length),
            **{name: value for name, value in values.items() if name == given},
        )
        with Sizes() as sizes:
            layer(x, **layer.prepare(x, context, position=None, mask=None, cache=None))
        largest.append(sizes.largest)
    assert largest == [largest[0], 2 * largest[0], 4 * largest[0]]


class Sizes(TorchDispatchMode):
    """Records the elements of the largest tensor that is computed."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        self.largest = max(self.largest, *(each.numel() for each in tensors), 0)
        return result
