import math

import pytest
import torch
from torch import nn

from llm.models.classifier import (
    AttentionPooling,
    Classifier,
    drop_tokens,
    first_token,
    last_occurrences,
    last_token,
    mean,
)

TEXT = torch.arange(1, 8)
POOLINGS = [last_token, first_token, mean]


@pytest.fixture
def make(build):
    def made(*overrides, pooling=last_token, num_classes=3, dropout=0.0):
        torch.manual_seed(0)
        model = Classifier(build(*overrides), num_classes, pooling=pooling, dropout=dropout)
        # Far from uniform probabilities, so that a wrong state changes the logits.
        nn.init.normal_(model.head.weight)
        return model.eval()

    return made


def padded(left: int, right: int, pad: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of TEXT and a longer text, with padding around TEXT."""
    length = left + len(TEXT) + right
    tokens = torch.full((2, length), pad)
    tokens[0, left : left + len(TEXT)] = TEXT
    attention = tokens.new_zeros(2, length, dtype=torch.bool)
    attention[0, left : left + len(TEXT)] = True
    attention[1] = True
    return tokens, attention


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("position", ["learned", "rotary", "alibi", "sinusoidal", "none"])
def test_logits_do_not_change_with_padding(make, pooling, position):
    model = make(f"model/position={position}", pooling=pooling).double()
    alone = model(TEXT[None])
    for left, right in [(0, 0), (0, 1), (0, 9), (1, 0), (9, 0), (3, 4)]:
        for pad in (0, 5):
            tokens, attention = padded(left, right, pad)
            torch.testing.assert_close(model(tokens, attention)[:1], alone, rtol=0, atol=1e-12)


def test_right_padding_changes_float32_logits_only_by_rounding(make):
    model = make()
    tokens, attention = padded(0, 6)
    torch.testing.assert_close(
        model(tokens, attention)[:1], model(TEXT[None]), rtol=1e-6, atol=1e-6
    )


def test_logits_depend_on_the_last_token_and_not_on_padding(make):
    model = make()
    tokens, attention = padded(2, 3)
    before = model(tokens, attention)[0]
    tokens[0, ~attention[0]] = 9
    torch.testing.assert_close(model(tokens, attention)[0], before)
    tokens[0, 2 + len(TEXT) - 1] = 9
    assert not torch.allclose(model(tokens, attention)[0], before, atol=1e-3)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_equals_a_loop_over_the_texts(pooling):
    hidden, attention = torch.randn(3, 6, 4), torch.zeros(3, 6, dtype=torch.bool)
    attention[0, :2] = attention[1, 3:] = attention[2, 1:5] = True
    hidden[~attention] = torch.nan  # states of padding must not affect the result
    for row in range(3):
        real = hidden[row, attention[row]]
        wanted = {last_token: real[-1], first_token: real[0], mean: real.mean(0)}[pooling]
        torch.testing.assert_close(pooling(hidden, attention)[row], wanted)
        torch.testing.assert_close(pooling(real[None], None)[0], wanted)


def uneven_pooling() -> AttentionPooling:
    """Attention pooling with weights far from equal."""
    pooling = AttentionPooling(64).double()
    nn.init.normal_(pooling.query)
    return pooling


def test_attention_pooling_equals_a_loop_over_the_texts():
    pooling = uneven_pooling()
    hidden = torch.randn(2, 6, 64, dtype=torch.float64)
    attention = torch.tensor([[True, True, False, False, False, False], [False, True] * 3])
    hidden[~attention] = torch.nan
    for row in range(2):
        real = hidden[row, attention[row]]
        weights = [math.exp((pooling.query @ state).item()) for state in real]
        wanted = sum(w * state for w, state in zip(weights, real, strict=True)) / sum(weights)
        torch.testing.assert_close(pooling(hidden, attention)[row], wanted)
        torch.testing.assert_close(pooling(real[None], None)[0], wanted)


def test_attention_pooling_starts_as_the_mean_and_gets_gradients():
    pooling, hidden = AttentionPooling(4), torch.randn(2, 5, 4)
    attention = torch.arange(5) < torch.tensor([[3], [5]])
    torch.testing.assert_close(pooling(hidden, attention), mean(hidden, attention))
    assert not pooling(hidden, torch.zeros_like(attention)).any()
    pooling(hidden, attention).sum().backward()
    assert pooling.query.grad is not None
    assert pooling.query.grad.abs().min() > 0


def test_last_occurrences_ignore_padding():
    torch.manual_seed(0)
    tokens, real = torch.randint(5, (40, 9)), torch.rand(40, 9) < 0.7
    found = last_occurrences(tokens, real)
    for row in range(40):
        last = {int(t): p for p, t in enumerate(tokens[row]) if real[row, p]}
        assert found[row].nonzero().flatten().tolist() == sorted(last.values())
    assert last_occurrences(torch.tensor([[3, 1, 3, 3, 2]]), None).tolist() == [
        [False, True, False, True, True]
    ]


def test_distinct_pools_a_repeated_token_once(build):
    """The blocks output 0 here, so order has no effect and only the number of pooled occurrences matters."""
    torch.manual_seed(0)
    body = build("model/init=zero_writes", "model/position=none")
    once, often = torch.tensor([[3, 1, 2, 5, 5]]), torch.tensor([[3, 3, 1, 3, 2]])
    real = torch.tensor([[True, True, True, False, False]])
    model = Classifier(body, 3, pooling=uneven_pooling().float(), distinct=True).eval()
    torch.testing.assert_close(model(often), model(once, real))
    model.distinct = False
    assert not torch.allclose(model(often), model(once, real), atol=1e-4)


def test_classifier_removes_the_language_model_head(make, build):
    body = build()
    kept = (body.embedding, body.position, body.blocks, body.final_norm)
    expected = sum(parameter.numel() for part in kept for parameter in part.parameters())
    model = make(num_classes=5)
    assert sum(p.numel() for p in model.body.parameters()) == expected
    assert model(TEXT[None]).shape == (1, 5)
    assert [name for name, _ in model.head.named_parameters()] == ["weight", "bias"]


def test_new_head_gives_nearly_uniform_probabilities(build):
    odds = Classifier(build(), 4)(TEXT[None]).softmax(-1)
    torch.testing.assert_close(odds, torch.full((1, 4), 0.25), rtol=0, atol=0.1)


def test_dropout_acts_in_training_only(make):
    model = make(dropout=0.5)
    assert torch.equal(model(TEXT[None]), model(TEXT[None]))
    model.train()
    assert not torch.equal(model(TEXT[None]), model(TEXT[None]))


def test_flops_exclude_the_language_model_head(make, build):
    body = build("model.tie_weights=false")
    saved = 6 * body.head.weight.numel()
    assert (
        make("model.tie_weights=false").flops_per_token(16) == body.flops_per_token(16) - saved > 0
    )


def test_zero_classes_are_refused(build):
    with pytest.raises(ValueError, match="num_classes=0: give 1 or more"):
        Classifier(build(), 0)


def test_token_dropout_keeps_at_least_one_real_token():
    torch.manual_seed(0)
    tokens = torch.zeros(4000, 5, dtype=torch.int64)
    real = torch.arange(5) < torch.tensor([1, 3, 4, 5]).repeat(1000)[:, None]
    kept = drop_tokens(tokens, real, dropout=0.4)
    assert not (kept & ~real).any()
    assert kept.any(dim=1).all()
    assert kept[:, 0][real.sum(1) == 1].all()
    assert kept[real.sum(1) == 5].float().mean() == pytest.approx(0.6, abs=0.03)
    assert drop_tokens(tokens, None, dropout=0.4).float().mean() == pytest.approx(0.6, abs=0.03)


def test_token_dropout_acts_in_training_only(build):
    torch.manual_seed(0)
    model = Classifier(build("size.dim=32"), 2, pooling=mean, token_dropout=0.5)
    tokens = torch.randint(97, (3, 12))
    assert not torch.equal(model(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), model(tokens))
    with pytest.raises(ValueError, match="token_dropout=1"):
        Classifier(build("size.dim=32"), 2, token_dropout=1.0)
