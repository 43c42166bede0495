import torch

from llm.nn.routing import expert_counts, route

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
