import pytest
import torch

from llm.nn.routing import (
    Balancing,
    RoutingSums,
    expert_counts,
    load_balancing_loss,
    route,
    routing_sums,
)

LOGITS = torch.tensor([[1.0, 3.0, 2.0, 0.0], [0.0, 0.0, 5.0, 4.0]], dtype=torch.float64)


def test_a_token_goes_to_the_experts_of_highest_probability():
    found = route(LOGITS, top_k=2, normalize=False)
    assert found.experts.tolist() == [[1, 2], [2, 3]]
    torch.testing.assert_close(found.weights, LOGITS.softmax(-1).gather(1, found.experts))


def test_normalized_weights_are_a_softmax_over_the_chosen_logits():
    found = route(LOGITS, top_k=2, normalize=True)
    torch.testing.assert_close(found.weights, LOGITS.gather(1, found.experts).softmax(-1))


def test_a_bias_changes_the_choice_but_not_the_weights():
    bias = torch.tensor([1.0, 0.0, 0.0, 0.0])
    found = route(LOGITS, top_k=1, normalize=False, bias=bias)
    assert found.experts.tolist() == [[0], [0]]
    torch.testing.assert_close(found.weights, LOGITS.softmax(-1)[:, :1])


def test_probabilities_of_bfloat16_logits_are_float32():
    assert route(LOGITS.bfloat16(), top_k=2, normalize=True).weights.dtype == torch.float32


def test_counts_are_the_tokens_of_each_expert():
    experts = torch.tensor([[0, 3], [3, 1], [3, 0]])
    assert expert_counts(experts, 5).tolist() == [2, 1, 0, 3, 0]


def test_sums_equal_their_definitions():
    routing = route(LOGITS, top_k=2, normalize=True)
    found, p = routing_sums(routing), LOGITS.softmax(-1)
    assert found.counts.tolist() == [0, 1, 2, 1]
    torch.testing.assert_close(found.probabilities, p.sum(0))
    torch.testing.assert_close(found.entropy, -(p * p.log()).sum())
    torch.testing.assert_close(found.z, LOGITS.exp().sum(-1).log().square().sum())
    assert found.tokens == 2


def test_padding_is_left_out_of_all_sums():
    real = torch.tensor([True, False])
    found = routing_sums(route(LOGITS, top_k=2, normalize=True), real)
    expected = routing_sums(route(LOGITS[:1], top_k=2, normalize=True))
    torch.testing.assert_close(found.packed, expected.packed)


def test_packed_sums_are_unpacked():
    sums = routing_sums(route(LOGITS, top_k=2, normalize=True))
    for found, expected in zip(RoutingSums.unpacked(sums.packed), sums, strict=True):
        assert torch.equal(found, expected)


def test_sums_are_float32_under_autocast():
    logits = LOGITS.float()
    expected = routing_sums(route(logits, top_k=2, normalize=True)).packed
    with torch.autocast("cpu", torch.bfloat16):
        found = routing_sums(route(logits, top_k=2, normalize=True)).packed
    assert torch.equal(found, expected)


def test_load_balancing_loss_is_smallest_for_equal_loads():
    equal = torch.full((4,), 0.25)
    assert load_balancing_loss(2 * equal, equal) == 2  # each token chose two experts
    skewed = torch.tensor([0.7, 0.1, 0.1, 0.1])
    assert load_balancing_loss(2 * skewed, skewed) > 2


def test_gradient_of_the_load_balancing_loss_lowers_the_logits_of_crowded_experts():
    logits = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 1.0]], requires_grad=True)
    sums = routing_sums(route(logits, top_k=1, normalize=False))
    load_balancing_loss(sums.counts / 2, sums.probabilities / 2).backward()
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 1:] < 0).all()


@pytest.mark.parametrize("name", ["load_balancing", "router_z", "bias_rate"])
def test_negative_coefficients_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=-0.1: is negative; use 0"):
        Balancing(**{name: -0.1})
