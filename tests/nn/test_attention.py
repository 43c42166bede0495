import math
from functools import partial

import pytest
import torch
from torch import nn

from llm.nn.attention import Attention, fused_attention, naive_attention
from llm.nn.norms import RMSNorm
from llm.nn.positions import Rotary


def draw(num_heads, num_kv_heads, num_queries, num_keys, dtype=torch.float64):
    generator = torch.Generator().manual_seed(num_heads * 100 + num_queries)
    shapes = [(2, num_heads, num_queries, 8), *[(2, num_kv_heads, num_keys, 8)] * 2]
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def masks(num_queries, num_keys):
    generator = torch.Generator().manual_seed(1)
    boolean = torch.rand(2, 1, num_queries, num_keys, generator=generator) < 0.6
    boolean[..., 0] = True  # a query without any key has no defined output
    floating = torch.randn(4, num_queries, num_keys, generator=generator, dtype=torch.float64)
    return {"none": None, "boolean": boolean, "floating": floating, "square": boolean[0, 0]}


@pytest.mark.parametrize("mask", ["none", "boolean", "floating", "square"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(6, 6), (3, 6), (1, 6)])
def test_fused_attention_equals_naive(mask, causal, num_kv_heads, num_queries, num_keys):
    inputs = draw(4, num_kv_heads, num_queries, num_keys)
    mask = masks(num_queries, num_keys)[mask]
    expected = naive_attention(*inputs, mask=mask, causal=causal)
    actual = fused_attention(*inputs, mask=mask, causal=causal)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)

    direction = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        rtol=0,
        atol=1e-12,
    )


def test_fused_attention_equals_naive_in_bfloat16_with_and_without_gradients():
    inputs = draw(4, 2, 16, 16, torch.bfloat16)
    expected = naive_attention(*(i.double() for i in inputs), causal=True)
    torch.testing.assert_close(
        fused_attention(*inputs, causal=True).double(), expected, rtol=0.02, atol=0.02
    )
    with torch.no_grad():
        torch.testing.assert_close(
            fused_attention(*inputs, causal=True).double(), expected, rtol=0.02, atol=0.02
        )


@pytest.mark.parametrize("mask", ["none", "boolean", "floating"])
def test_soft_cap_bounds_scores_before_the_mask(mask):
    query, key, value = draw(4, 2, 6, 6)
    mask = masks(6, 6)[mask]
    scores = query @ key.repeat_interleave(2, dim=1).mT / math.sqrt(8)
    scores = 0.5 * torch.tanh(scores / 0.5)
    allowed = torch.ones(6, 6, dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:
        allowed = allowed & mask
    elif mask is not None:
        scores = scores + mask
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    expected = weights @ value.repeat_interleave(2, dim=1)
    for kernel in (naive_attention, fused_attention):
        actual = kernel(query, key, value, mask=mask, causal=True, softcap=0.5)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_naive_attention_equals_softmax_of_scaled_scores():
    query = torch.tensor([[[[2.0]], [[0.0]]]])  # two query heads share one key head
    key = torch.tensor([[[[0.0], [1.0]]]])
    value = torch.tensor([[[[10.0], [20.0]]]])
    weight = torch.tensor(2.0).exp() / (1 + torch.tensor(2.0).exp())
    expected = torch.stack([10 + 10 * weight, torch.tensor(15.0)]).view(1, 2, 1, 1)
    torch.testing.assert_close(naive_attention(query, key, value), expected)


def test_naive_attention_equals_torch_multihead_attention():
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    ours = Attention(16, 4, kernel=naive_attention).double()
    with torch.no_grad():
        ours.query_key_value.weight.copy_(theirs.in_proj_weight)
        ours.query_key_value.bias.copy_(theirs.in_proj_bias)
        ours.output.weight.copy_(theirs.out_proj.weight)
        ours.output.bias.copy_(theirs.out_proj.bias)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x, causal=False), theirs(x, x, x)[0], rtol=0, atol=1e-12)


def test_grouped_heads_equal_repeated_heads():
    torch.manual_seed(0)
    grouped = Attention(16, 4, num_kv_heads=2)
    full = Attention(16, 4)
    full.output = grouped.output
    with torch.no_grad():
        for name in ("weight", "bias"):
            rows = getattr(grouped.query_key_value, name).unflatten(0, (8, 4))
            repeated = [rows[:4], *(part.repeat_interleave(2, 0) for part in rows[4:].split(2))]
            getattr(full.query_key_value, name).copy_(torch.cat(repeated).flatten(0, 1))
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(grouped(x), full(x))


def test_head_dim_may_differ_from_dim_divided_by_heads():
    attention = Attention(16, 4, num_kv_heads=1, head_dim=6, bias=False, qkv_bias=False)
    assert attention(torch.randn(2, 5, 16)).shape == (2, 5, 16)
    assert sum(p.numel() for p in attention.parameters()) == 16 * 6 * (4 + 2) + 4 * 6 * 16


def test_qk_norm_makes_scores_independent_of_the_projection_scale():
    torch.manual_seed(0)
    attention = Attention(16, 4, qk_norm=partial(RMSNorm, eps=0.0), qkv_bias=False).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    before = attention(x)
    with torch.no_grad():
        attention.query_key_value.weight[:32] *= 1000
    torch.testing.assert_close(attention(x), before)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    for kernel in (naive_attention, fused_attention):
        attention = Attention(16, 4, dropout=0.5, kernel=kernel)
        x = torch.randn(2, 5, 16)
        assert not torch.equal(attention(x), attention(x))
        attention.eval()
        torch.testing.assert_close(attention(x), attention(x))


def test_dropout_acts_on_attention_weights():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 1, 400, 8) for _ in range(3))
    for kernel in (naive_attention, fused_attention):
        kept = kernel(query * 0, key, torch.ones_like(value), dropout=0.25)
        assert kept.std() > 0.01  # each row drops different weights,
        assert abs(kept.mean() - 1) < 0.01  # and the kept ones are scaled up


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 100, "num_heads": 3}, "num_heads=3 does not divide dim=100.*1, 2, 4, 5"),
        ({"dim": 64, "num_heads": 4, "num_kv_heads": 3}, "num_kv_heads=3 does not divide num_he"),
        ({"dim": 64, "num_heads": 0}, "num_heads=0"),
        ({"dim": 64, "num_heads": 4, "num_kv_heads": 0}, "num_kv_heads=0"),
        ({"dim": 64, "num_heads": 4, "dropout": 1.5}, "dropout"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Attention(**arguments)


def test_scores_of_rotated_heads_depend_on_distance_only():
    torch.manual_seed(0)
    attention = Attention(16, 2).double()
    rotary = Rotary(16, 2)
    x = torch.randn(1, 6, 16, dtype=torch.float64)
    near = attention(x, rotation=rotary.rotation(x, slice(0, 6)))
    far = attention(x, rotation=rotary.rotation(x, slice(1000, 1006)))
    torch.testing.assert_close(near, far, rtol=0, atol=1e-10)
    assert not torch.allclose(near, attention(x))
