"""Prefixes: initial values, positions, and padding."""

import copy
import itertools

import pytest
import torch
from torch import nn

from llm.adapters.base import adapter_state, disabled
from llm.adapters.prefix import Prefix, PrefixKernel
from llm.models.classifier import Classifier
from llm.nn.attention import naive_attention
from llm.training.activation_checkpointing import checkpoint_activations

VARIANTS = {
    "gpt2": ["model=gpt2"],
    "gpt": ["model=gpt"],
    "naive": ["model=gpt", "model/kernel=naive"],
    "grouped": ["model=llama", "size.num_heads=4", "size.num_kv_heads=2"],
    "alibi": ["model=gpt2", "model/position=alibi"],
    "window": ["model=gpt", "model/mask=sliding_window", "model.mask.size=5"],
}
variants = pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)


def adapted(model: nn.Module, randomize, length: int = 3) -> nn.Module:
    Prefix(length).apply(model)
    return randomize(model).double().eval()


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "gpt", "naive", "grouped"])
def test_new_prefix_acts_like_random_tokens_before_the_text(build, tokens, name):
    base = build(*VARIANTS[name]).double().eval()
    model = copy.deepcopy(base)
    torch.manual_seed(5)
    Prefix(4).apply(model)
    torch.manual_seed(5)
    read = torch.randint(97, (1, 4)).expand(2, -1)
    positions = torch.tensor([*range(4), *range(12)])
    expected = base(torch.cat((read, tokens), dim=1), positions=positions)[:, 4:]
    assert_same(model(tokens), expected)


def test_kernel_equals_attention_over_prefix_and_text():
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind()
    key, value = key[:, :2], value[:, :2]
    prefix = PrefixKernel(naive_attention, key=torch.randn(2, 3, 8), value=torch.randn(2, 3, 8))
    pairs = ((prefix.key, key), (prefix.value, value))
    longer = [torch.cat((columns.expand(2, 2, 3, 8), text), dim=2) for columns, text in pairs]
    triangle = torch.ones(5, 5, dtype=torch.bool).tril()
    everything = torch.ones(5, 3, dtype=torch.bool)
    expected = naive_attention(query, *longer, mask=torch.cat((everything, triangle), dim=1))
    floating = torch.zeros(5, 5).masked_fill(~triangle, -torch.inf)
    for mask, causal in ((None, True), (triangle, False), (floating, False), (triangle, True)):
        torch.testing.assert_close(prefix(query, key, value, mask=mask, causal=causal), expected)


@variants
def test_cached_equals_uncached(build, tokens, randomize, words):
    model = adapted(build(*words), randomize)
    cache = model.new_cache(2)
    parts = [model(part, cache=cache) for part in tokens.split([5, 1, 1, 4, 1], dim=1)]
    assert cache.length == 12
    assert_same(torch.cat(parts, dim=1), model(tokens))


@variants
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(build, tokens, randomize, words, side):
    model = adapted(build(*words), randomize)
    real = torch.ones(2, 12, dtype=torch.bool)
    real[0] = torch.arange(12) >= 5 if side == "left" else torch.arange(12) < 7
    padded = model(tokens, attention_mask=real)
    assert padded.isfinite().all()
    assert_same(padded[0, real[0]], model(tokens[:1, real[0]])[0])
    assert_same(padded[1], model(tokens[1:])[0])


@variants
def test_padded_rows_with_a_cache_equal_unpadded_rows(build, tokens, randomize, words):
    model = adapted(build(*words), randomize)
    real = torch.ones(2, 12, dtype=torch.bool)
    real[0, :5] = False
    cache, starts = model.new_cache(2), itertools.accumulate([6, 1, 5], initial=0)
    parts = [
        model(part, cache=cache, attention_mask=real[:, start : start + part.shape[1]])
        for part, start in zip(tokens.split([6, 1, 5], dim=1), starts, strict=False)
    ]
    assert_same(torch.cat(parts, dim=1)[0, real[0]], model(tokens[:1, real[0]])[0])


@variants
def test_every_token_attends_to_the_prefix_and_not_to_later_tokens(build, tokens, randomize, words):
    model = adapted(build(*words), randomize)
    before = model(tokens)
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 97
    assert torch.equal(model(changed)[:, :7], before[:, :7])
    randomize(model)
    assert not torch.isclose(model(tokens), before).all(dim=-1).any()


def test_only_prefix_keys_and_values_are_trained(build):
    model = Classifier(build("model=llama", "size.num_heads=4", "size.num_kv_heads=2"), 2)
    Prefix(5).apply(model)
    state = adapter_state(model)
    assert state["body.blocks.0.attention.kernel.key"].shape == (2, 5, 16)
    assert sum(t.numel() for t in state.values()) == 2 * 2 * 2 * 5 * 16
    assert all(module.training for module in model.modules())


def test_recomputed_activations_give_the_same_gradients(build, tokens, randomize):
    model = build("model=gpt")
    Prefix(3).apply(model)
    randomize(model)
    recomputing = copy.deepcopy(model)
    checkpoint_activations(recomputing)
    for each in (model, recomputing):
        each(tokens).square().sum().backward()
    for one, other in zip(model.parameters(), recomputing.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None) == (not one.requires_grad)
        assert one.grad is None or torch.equal(one.grad, other.grad)


def test_prefix_steers_the_outputs_of_an_unchanged_base(build, train):
    """After the first token, the base cannot know whether a row counts by one or by two."""
    torch.manual_seed(0)
    model = build("model=gpt2")
    train(model, 1, 2, rate=3e-3, steps=100)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = torch.arange(97)[:, None]
    by_one, by_two = torch.arange(1, 98) % 97, torch.arange(2, 99) % 97

    def counts_by_one(model: nn.Module) -> float:
        logits = model(first)[:, 0]
        return (logits[first[:, 0], by_one] > logits[first[:, 0], by_two]).float().mean().item()

    for stride, share in ((1, 1.0), (2, 0.0)):
        steered = copy.deepcopy(model)
        Prefix(5).apply(steered)
        train(steered, stride, rate=3e-2, steps=120, length=2)
        assert counts_by_one(steered) == pytest.approx(share, abs=0.1)
        with disabled(steered):
            assert 0.1 < counts_by_one(steered) < 0.9
        for name, tensor in base.items():
            assert torch.equal(steered.state_dict()[name], tensor), name


def test_errors_name_a_remedy(build):
    with pytest.raises(ValueError, match="length=0: give 1 or more"):
        Prefix(0)
    with pytest.raises(ValueError, match="length=65: give no more than context_length=64"):
        Prefix(65).apply(build())
    with pytest.raises(ValueError, match="needs a GPT, and Linear contains none"):
        Prefix().apply(nn.Linear(2, 2))
    model = build()
    Prefix().apply(model)
    with pytest.raises(ValueError, match="has a prefix already"):
        Prefix().apply(model)


@pytest.mark.parametrize(
    "words", [["model=lstm"], ["model/attention=latent"], ["model/layers=shared_kv"]]
)
def test_layers_other_than_attention_are_refused(build, words):
    with pytest.raises(
        ValueError, match=r"extends layers of class Attention, .*adapter=last_block"
    ):
        Prefix(4).apply(build(*words))
