import pytest
import torch
from torch import nn

from llm.nn.feed_forward import GatedFeedForward
from llm.nn.mixture_of_experts import MixtureOfExperts, grouped_experts, naive_experts
from llm.nn.routing import Balancing

# Widths whose rows are multiples of 16 bytes in each dtype, and widths for which the kernel has to be replaced.
WIDTHS = [(16, 24), (6, 10)]


def layer(dim=16, hidden_dim=24, *, dtype=torch.float64, **given):
    torch.manual_seed(0)
    made = MixtureOfExperts(dim, hidden_dim=hidden_dim, **given).to(dtype)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def draw(dim=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 7, dim, generator=generator, dtype=torch.float64).to(dtype)


def value_and_gradients(moe, x, kernel):
    moe.kernel = kernel
    inputs = [x.detach().clone().requires_grad_(), *moe.parameters()]
    y = moe(inputs[0])
    return [y, *torch.autograd.grad(y.double().sin().sum(), inputs)]


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_naive_and_grouped_experts_are_equal(widths, bias, normalize):
    moe = layer(*widths, bias=bias, normalize=normalize, num_experts=5)
    x = draw(widths[0])
    naive, grouped = (value_and_gradients(moe, x, k) for k in (naive_experts, grouped_experts))
    torch.testing.assert_close(grouped, naive, rtol=0, atol=1e-12)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=["float32", "bfloat16"]
)
def test_naive_and_grouped_experts_are_equal_in_lower_precision(widths, dtype, error):
    moe, x = layer(*widths, dtype=dtype), draw(widths[0], dtype)
    naive, grouped = (value_and_gradients(moe, x, k) for k in (naive_experts, grouped_experts))
    for ours, definition in zip(grouped, naive, strict=True):
        assert ours.dtype == definition.dtype == dtype
        scale = definition.abs().max().item()
        torch.testing.assert_close(ours, definition, rtol=0, atol=error * scale)


def test_naive_and_grouped_experts_are_equal_under_autocast():
    moe, x = layer(dtype=torch.float32), draw(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        naive, grouped = (value_and_gradients(moe, x, k) for k in (naive_experts, grouped_experts))
    assert all(each.dtype == torch.float32 for each in grouped[1:])
    torch.testing.assert_close(grouped, naive, rtol=0.05, atol=0.05)


def test_output_is_the_weighted_sum_of_the_chosen_experts():
    moe, x = layer(num_experts=4, top_k=2), draw()
    probabilities = moe.router(x).softmax(-1)
    for b in range(3):
        for t in range(7):
            best = probabilities[b, t].argsort(descending=True)[:2]
            weights = probabilities[b, t, best] / probabilities[b, t, best].sum()
            expected = sum(
                w * one_expert(moe, e)(x[b, t]) for w, e in zip(weights, best, strict=True)
            )
            torch.testing.assert_close(moe(x)[b, t], expected)


def one_expert(moe, index):
    """Return an expert as a `GatedFeedForward` with the same matrices."""
    dense = GatedFeedForward(16, hidden_dim=24).double()
    for name in ("gate", "input", "output"):
        stack = moe.experts.get_submodule(name)
        dense.get_submodule(name).load_state_dict(
            {"weight": stack.weight[index], "bias": stack.bias[index]}
        )
    return dense


def test_one_expert_is_a_gated_feed_forward_layer():
    moe, x = layer(num_experts=1, top_k=1), draw()
    torch.testing.assert_close(moe(x), one_expert(moe, 0)(x))


def test_a_shared_expert_computes_every_token():
    plain, x = layer(), draw()
    moe = layer(shared=lambda dim: GatedFeedForward(dim, hidden_dim=8))
    moe.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(moe(x), plain(x) + moe.shared(x))


def test_every_token_may_choose_the_same_experts():
    moe = layer(num_experts=4)
    with torch.no_grad():
        moe.router.bias.copy_(torch.tensor([9.0, 0.0, 9.0, 0.0]))
        moe.router.weight.zero_()
    x = draw()
    half = (one_expert(moe, 0)(x) + one_expert(moe, 2)(x)) / 2
    torch.testing.assert_close(moe(x), half)


def test_unused_experts_get_a_gradient_of_zero():
    moe = layer(num_experts=4, top_k=1)
    moe(draw()[:1, :1]).sum().backward()
    gradient = moe.experts.input.weight.grad
    assert sorted(gradient.flatten(1).any(1).tolist()) == [False, False, False, True]


def test_hidden_width_makes_a_token_cost_as_much_as_in_a_dense_layer():
    for top_k, hidden_dim in ((1, 2048), (2, 1024), (8, 256)):
        moe = MixtureOfExperts(768, num_experts=8, top_k=top_k)
        assert moe.experts.output.weight.shape == (8, 768, hidden_dim)


@pytest.mark.parametrize("top_k", [0, 5])
def test_too_many_or_no_experts_of_a_token_are_refused(top_k):
    with pytest.raises(ValueError, match=f"top_k={top_k}.*num_experts=4; give 1 to 4"):
        MixtureOfExperts(16, num_experts=4, top_k=top_k)


def test_dropout_acts_in_training():
    moe, x = layer(dropout=0.5), draw()
    assert (moe(x) == 0).any()
    assert not (moe.eval()(x) == 0).any()


def test_only_passes_with_gradients_are_recorded_when_asked():
    moe, x = layer(), draw()
    real = torch.ones(3, 7, dtype=torch.bool)
    moe(x)
    assert moe.records is None
    moe.records = []
    moe(x, attention_mask=real)
    with torch.no_grad():
        moe(x)
    [(routing, mask)] = moe.records
    assert routing.logits.shape == (21, 8)
    assert mask is real


def test_bias_moves_towards_equal_loads_and_is_saved():
    moe = layer(num_experts=4, balancing=Balancing(bias_rate=0.5))
    moe.update_bias(torch.tensor([4.0, 0.0, 2.0, 2.0]))
    assert moe.state_dict()["selection_bias"].tolist() == [-0.5, 0.5, 0, 0]
    x = draw()
    moe.selection_bias.copy_(torch.tensor([9.0, 0.0, 0.0, 9.0]))
    moe.records = []
    moe(x)
    assert set(moe.records[0][0].experts.flatten().tolist()) == {0, 3}
    moe.reset_parameters()
    assert not moe.selection_bias.any()


def test_without_a_rate_there_is_no_bias():
    moe = layer()
    assert "selection_bias" not in moe.state_dict()
    moe.update_bias(torch.arange(8.0))
