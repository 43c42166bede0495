from functools import partial

import pytest
import torch
from torch import nn

from llm.nn.norms import (
    LayerNorm,
    RMSNorm,
    WeightlessRMSNorm,
    ZeroCenteredRMSNorm,
    fused_layer_norm,
    fused_rms_norm,
    naive_layer_norm,
    naive_rms_norm,
)


def draw(dtype=torch.float64):
    torch.manual_seed(0)
    x = (3 * torch.randn(4, 5, 16, dtype=dtype) + 1).requires_grad_()
    return x, *(torch.randn(16, dtype=dtype).requires_grad_() for _ in range(2))


@pytest.mark.parametrize("biased", [True, False])
def test_naive_and_fused_layer_norms_are_equal(biased):
    x, weight, bias = draw()
    bias = bias if biased else None
    inputs = [each for each in (x, weight, bias) if each is not None]
    results = [
        (y := norm(x, weight, bias=bias, eps=1e-5), torch.autograd.grad(y.sin().sum(), inputs))
        for norm in (naive_layer_norm, fused_layer_norm)
    ]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)


def test_naive_and_fused_rms_norms_are_equal():
    x, weight, _ = draw()
    results = [
        (y := norm(x, weight, eps=1e-5), torch.autograd.grad(y.sin().sum(), (x, weight)))
        for norm in (naive_rms_norm, fused_rms_norm)
    ]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)


def test_rms_gradient_equals_finite_differences():
    x, weight, _ = draw()
    assert torch.autograd.gradcheck(partial(fused_rms_norm, eps=1e-2), (x[:2, :2], weight))


def test_rms_norm_takes_strided_and_bfloat16_input():
    x, weight, _ = draw(torch.float32)
    strided = x.transpose(0, 1)
    torch.testing.assert_close(
        fused_rms_norm(strided, weight, eps=1e-5), naive_rms_norm(strided, weight, eps=1e-5)
    )
    half = x.detach().bfloat16().requires_grad_()
    y = fused_rms_norm(half, weight, eps=1e-5)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    torch.testing.assert_close(y, naive_rms_norm(half, weight, eps=1e-5).bfloat16())
    assert half.grad.dtype == torch.bfloat16


def test_modules_equal_those_of_torch():
    x, *_ = draw()
    for ours, theirs in [
        (LayerNorm(16), nn.LayerNorm(16)),
        (LayerNorm(16, bias=False), nn.LayerNorm(16, bias=False)),
        (RMSNorm(16), nn.RMSNorm(16, eps=1e-5)),
    ]:
        assert ours.double().state_dict().keys() == theirs.double().state_dict().keys()
        torch.testing.assert_close(ours(x), theirs(x))


def test_kernel_can_be_chosen():
    x, *_ = draw()
    for module in (LayerNorm(16, kernel=naive_layer_norm), RMSNorm(16, kernel=naive_rms_norm)):
        torch.testing.assert_close(module.double()(x), type(module)(16).double()(x))


def test_zero_centered_norm_scales_by_one_more_than_its_weight():
    x, weight, _ = draw()
    norm, plain = ZeroCenteredRMSNorm(16).double(), RMSNorm(16).double()
    assert torch.equal(norm(x), plain(x)), "the scale begins at 1"
    norm.weight.data = weight.detach()
    plain.weight.data = 1 + weight.detach()
    results = [
        (y := each(x), torch.autograd.grad(y.sin().sum(), (x, each.weight)))
        for each in (norm, plain)
    ]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)
    norm.reset_parameters()
    assert not norm.weight.any()


def test_weightless_norm_has_rows_of_mean_square_one_and_no_parameters():
    x, *_ = draw()
    norm = WeightlessRMSNorm(16, eps=0.0)
    assert not [*norm.parameters(), *norm.state_dict()]
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(4, 5, dtype=torch.float64))
    half = norm(x.detach().bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), norm(x).detach(), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("kind", [ZeroCenteredRMSNorm, WeightlessRMSNorm])
def test_naive_and_fused_kernels_of_other_norms_are_equal(kind):
    x, weight, _ = draw()
    results = []
    for kernel in (naive_rms_norm, fused_rms_norm):
        norm = kind(16, kernel=kernel).double()
        for parameter in norm.parameters():
            parameter.data = weight.detach().clone()
        y = norm(x)
        results.append((y, torch.autograd.grad(y.sin().sum(), (x, *norm.parameters()))))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm, ZeroCenteredRMSNorm, WeightlessRMSNorm])
def test_constant_rows_stay_finite(kind):
    x = torch.zeros(2, 16, requires_grad=True)
    y = kind(16)(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
