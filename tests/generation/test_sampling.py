import math

import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llm.generation.sampling import Sampler, draw_token, repetition_penalty, top_k, top_p

V = 50


@pytest.fixture
def logits():
    return torch.randn(6, V, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def uniform():
    return torch.rand(6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("k", [1, 2, 10, V - 1, V, V + 1, 10 * V])
def test_top_k_equals_transformers(logits, k):
    assert torch.equal(top_k(logits, k), TopKLogitsWarper(k)(None, logits))


@pytest.mark.parametrize("p", [1e-9, 0.01, 0.3, 0.5, 0.9, 0.999, 1.0])
def test_top_p_equals_transformers(logits, p):
    assert torch.equal(top_p(logits, p), TopPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 10.0])
def test_repetition_penalty_equals_transformers(logits, penalty):
    texts = torch.randint(V, (6, 8), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(6, V, dtype=torch.bool).scatter(1, texts, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(texts, logits)
    assert torch.equal(repetition_penalty(logits, seen, penalty=penalty), expected)


def test_repeated_token_gets_less_likely_for_either_sign_of_its_logit():
    logits = torch.tensor([[2.0, -2.0, 0.0, 2.0, -2.0, 0.0]])
    seen = torch.tensor([[True, True, True, False, False, False]])
    assert repetition_penalty(logits, seen, penalty=2.0).tolist() == [
        [1.0, -4.0, 0.0, 2.0, -2.0, 0.0]
    ]


def test_top_k_keeps_all_logits_equal_to_the_kth():
    logits = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]])
    assert (top_k(logits, 2) > -math.inf).tolist() == [[True, True, True, True, False]]


def test_top_p_keeps_only_as_many_equal_logits_as_it_needs():
    kept = top_p(torch.zeros(1, 8), 0.5) > -math.inf
    assert kept.sum().item() == 4


def test_top_p_keeps_the_most_likely_token_for_any_p():
    kept = top_p(torch.tensor([[0.0, 5.0, 1.0]]), 1e-12) > -math.inf
    assert kept.tolist() == [[False, True, False]]


@pytest.mark.parametrize("unlikely", [-math.inf, -1e30])
def test_draw_follows_the_probabilities(unlikely):
    logits = torch.tensor([[unlikely, 0.1, 0.2, 0.3, 0.4, unlikely]])
    logits[:, 1:5] = logits[:, 1:5].log()
    n = 100_000
    uniform = (torch.arange(n) + 0.5) / n
    counts = draw_token(logits.expand(n, -1), uniform).bincount(minlength=6) / n
    expected = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.0])
    torch.testing.assert_close(counts, expected, rtol=0, atol=2 / n)


def test_smallest_and_largest_uniform_numbers_draw_possible_tokens():
    logits = torch.full((2, 1000), -math.inf)
    logits[:, 300:700] = torch.randn(400, generator=torch.Generator().manual_seed(0))
    largest = 1 - 2**-24  # the largest float32 number that torch.rand returns
    first, last = draw_token(logits, torch.tensor([0.0, largest])).tolist()
    assert first == 300
    assert last == 699


def test_sampler_equals_the_logits_processors_of_transformers(logits, uniform):
    texts = torch.randint(V, (6, 8), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(6, V, dtype=torch.bool).scatter(1, texts, True)
    scores = logits
    for processor in (
        RepetitionPenaltyLogitsProcessor(1.2),
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(20),
        TopPLogitsWarper(0.8),
    ):
        scores = processor(texts, scores)
    probabilities = scores.softmax(-1)
    sampler = Sampler(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.2)
    grid = (torch.arange(2000) + 0.5) / 2000
    for row in range(6):
        drawn = sampler(
            logits[row].expand(2000, -1), grid, seen=seen[row].expand(2000, -1)
        ).bincount(minlength=V)
        torch.testing.assert_close(drawn / 2000, probabilities[row], rtol=0, atol=1e-3)


def test_temperature_zero_is_greedy_and_takes_the_first_of_equal_logits(logits, uniform):
    assert torch.equal(Sampler(temperature=0.0)(logits, uniform), logits.argmax(-1))
    assert Sampler(temperature=0.0)(torch.zeros(1, 5), torch.tensor([0.9])).tolist() == [0]


@pytest.mark.parametrize("sampler", [Sampler(top_k=1), Sampler(top_p=1e-6), Sampler(1e-6)])
def test_the_narrowest_settings_are_greedy(logits, uniform, sampler):
    assert torch.equal(sampler(logits, uniform), logits.argmax(-1))


def test_settings_that_exclude_no_token_change_nothing(logits, uniform):
    plain = Sampler()(logits, uniform)
    assert torch.equal(Sampler(top_p=1.0, top_k=10**9)(logits, uniform), plain)
    assert torch.equal(plain, draw_token(logits, uniform))


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(0.5, 10, 0.9, 1.1), Sampler(0.0)])
def test_row_does_not_depend_on_the_other_rows(logits, uniform, sampler):
    seen = torch.zeros(6, V, dtype=torch.bool)
    together = sampler(logits, uniform, seen=seen)
    alone = torch.cat([sampler(logits[[i]], uniform[[i]], seen=seen[[i]]) for i in range(6)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_sampled_in_float32(logits, uniform, dtype):
    half = logits.to(dtype)
    assert torch.equal(Sampler(0.9)(half, uniform), Sampler(0.9)(half.float(), uniform))


def test_sampler_does_not_change_its_inputs(logits, uniform):
    before = logits.clone()
    Sampler(0.5, 10, 0.9, 1.3)(logits, uniform, seen=torch.ones(6, V, dtype=torch.bool))
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": -3}, "top_k=-3"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty=-1.0"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, named):
    with pytest.raises(ValueError, match=named):
        Sampler(**settings)
