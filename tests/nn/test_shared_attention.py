"""Attention to the keys and values of an earlier layer: written out, against transformers, and in generation."""

import math
from functools import partial

import pytest
import torch
from float64_mode import Float64
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nTextConfig
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextAttention

from llm.adapters.targets import choose_targets
from llm.models.gpt import GPT
from llm.nn.attention import Attention
from llm.nn.context import Context
from llm.nn.feed_forward import FeedForward
from llm.nn.kv_cache import LayerCache, WindowCache
from llm.nn.layer_schedule import Layer
from llm.nn.lstm import LSTM
from llm.nn.masks import causal, sliding_window, sparse_strided
from llm.nn.norms import RMSNorm
from llm.nn.positions import NoPosition, Rotary, rotate
from llm.nn.residual import pre_norm
from llm.nn.shared_attention import SharedKVAttention
from llm.nn.stack import Stack

DIM, HEADS, LENGTH = 16, 4, 7
SHARED = partial(SharedKVAttention, num_heads=HEADS)
BASE = Layer(
    attention=partial(Attention, num_heads=HEADS, num_kv_heads=2),
    feed_forward=partial(FeedForward, hidden_dim=8),
    norm=RMSNorm,
    residual=pre_norm,
)
WINDOW = sliding_window(3)


def stack(*pattern: str, **kinds: Layer) -> Stack:
    torch.manual_seed(0)
    made = Stack(DIM, len(pattern), layer=BASE, layers=kinds, pattern=pattern)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made.double()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def heads_of(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The heads of a projection, (heads, T, D)."""
    return (x @ weight.T + bias).unflatten(-1, (-1, DIM // HEADS)).transpose(0, 1)


def test_two_layers_equal_the_equations():
    layers = stack("own", "shared", own=Layer(), shared=Layer(attention=SHARED))
    own, shared = (block.attention for block in layers)
    position, x = Rotary(DIM, HEADS), draw(1, LENGTH, DIM)
    rotation = position.rotation(x, slice(0, LENGTH))
    actual = layers(x, Context(position=position, mask=causal, positions=slice(0, LENGTH)))

    def turn(head: torch.Tensor) -> torch.Tensor:
        return rotate(head[None, None], rotation)[0, 0]

    weights = own.query_key_value.weight.split((DIM, DIM // 2, DIM // 2))
    biases = own.query_key_value.bias.split((DIM, DIM // 2, DIM // 2))
    x = x[0]
    inner = layers[0].attention_norm(x)
    query, key, value = (heads_of(inner, w, b) for w, b in zip(weights, biases, strict=True))
    keys = [turn(each) for each in key]
    for number, block in enumerate(layers):
        if number:
            inner = block.attention_norm(x)
            query = heads_of(inner, shared.query.weight, shared.query.bias)
        found = []
        for head in range(HEADS):  # two query heads for each key head
            q, k, v = turn(query[head]), keys[head // 2], value[head // 2]
            rows = []
            for t in range(LENGTH):
                scores = torch.stack([q[t] @ k[s] / math.sqrt(DIM // HEADS) for s in range(t + 1)])
                rows.append(sum(w * v[s] for s, w in enumerate(scores.softmax(0))))
            found.append(torch.stack(rows))
        x = x + block.attention.output(torch.cat(found, dim=-1))
        x = x + block.feed_forward(block.feed_forward_norm(x))
    torch.testing.assert_close(actual[0], x, rtol=0, atol=1e-12)


TYPES = ["sliding_attention", "full_attention"]


def gemma3n(types: list[str], shared: int, **settings) -> Gemma3nTextConfig:
    return Gemma3nTextConfig(
        hidden_size=DIM,
        num_hidden_layers=len(types),
        num_kv_shared_layers=shared,
        layer_types=types,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=DIM // HEADS,
        sliding_window=3,
        attn_implementation="eager",
        **settings,
    )


def test_a_layer_shares_with_the_closest_of_its_mask_as_in_gemma_3n():
    types = [TYPES[0], TYPES[0], TYPES[1], TYPES[0], TYPES[1], TYPES[1], TYPES[0], TYPES[0]]
    config = gemma3n(types, 3)
    theirs = [Gemma3nTextAttention(config, index).kv_shared_layer_index for index in range(8)]
    kinds = {
        "local": Layer(mask=sliding_window(3)),
        "full": Layer(),
        "local_shared": Layer(mask=sliding_window(3), attention=SHARED),
        "full_shared": Layer(attention=SHARED),
    }
    names = ["local" if kind == TYPES[0] else "full" for kind in types]
    layers = stack(*names[:5], *(f"{name}_shared" for name in names[5:]), **kinds)
    assert [link and link.layer for link in layers.links] == theirs == [None] * 5 + [4, 3, 3]
    assert [layers.offers[layer] for layer in (2, 3, 4)] == [
        [],
        ["keys_and_values"],
        ["keys_and_values"],
    ]


def test_layer_equals_that_of_gemma_3n():
    theirs = Gemma3nTextAttention(gemma3n([TYPES[1]] * 2, 1), 1).double().eval()
    ours = SharedKVAttention(DIM, HEADS, bias=False, query_bias=False, qk_norm=RMSNorm).double()
    names = {"query": "q_proj", "query_norm": "q_norm", "output": "o_proj"}
    for name, other in names.items():
        weight = theirs.get_submodule(other).weight
        nn.init.normal_(weight)
        ours.get_submodule(name).weight.data.copy_(weight.data)
    # Their scores are not divided by the root of the width of a head.
    ours.query_norm.weight.data.mul_(math.sqrt(DIM // HEADS))
    ours.query_norm.eps = theirs.q_norm.eps
    x, source = draw(2, LENGTH, DIM), (draw(2, 2, LENGTH, 4), draw(2, 2, LENGTH, 4) + 1)
    rotation = Rotary(DIM, HEADS).rotation(x, slice(0, LENGTH))
    cos, sin = (torch.cat((part, part), dim=-1).expand(2, -1, -1) for part in rotation)
    mask = torch.full((LENGTH, LENGTH), -torch.inf, dtype=x.dtype).triu(1)[None, None]
    with Float64():
        expected, _ = theirs(x, (cos, sin), mask, shared_kv_states={0: source})
    actual = ours(x, source=source, rotation=rotation)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_gradients_reach_the_source_through_both_layers():
    """Without the shared layer's gradient, that of the keys would be another."""
    layers = stack("own", "shared", own=Layer(), shared=Layer(attention=SHARED))
    context = Context(position=NoPosition(), mask=causal, positions=slice(0, LENGTH))
    x, weight = draw(1, LENGTH, DIM), layers[0].attention.query_key_value.weight
    layers(x, context).square().sum().backward()
    step = torch.zeros_like(weight)
    step[-1, 3] = 1e-6  # a row of the values
    with torch.no_grad():
        losses = []
        for sign in (1, -1):
            weight.add_(sign * step)
            losses.append(layers(x, context).square().sum())
            weight.sub_(sign * step)
    slope = (losses[0] - losses[1]) / 2e-6
    torch.testing.assert_close(weight.grad[-1, 3], slope, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("mask", "kind"),
    [("model/mask=causal", LayerCache), ("model/mask=sliding_window", WindowCache)],
)
def test_shared_layers_have_an_empty_cache(build, mask, kind):
    words = ["model=gpt", mask, "size.num_layers=4"]
    plain = build(*words).new_cache(3, 20)
    model: GPT = build(*words, "model/layers=shared_kv")
    cache = model.new_cache(3, 20)
    assert [layer.nbytes > 0 for layer in cache.layers] == [True, False, True, False]
    assert all(isinstance(layer, kind) for layer in cache.layers)
    assert 2 * cache.nbytes == plain.nbytes > 0
    assert model.has_bounded_state == (kind is WindowCache)


@pytest.mark.parametrize("words", [[], ["model/mask=sliding_window", "model.mask.size=3"]])
def test_a_cache_selects_rows_and_forgets_tokens(build, words):
    """As in beam search, and as for the next prompt of a conversation."""
    shared = ["model/layers=shared_kv", "model/attention=value_residual", "size.num_layers=4"]
    model: GPT = build("model=gpt", *shared, *words).double().eval()
    tokens = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(2, 10)
    model(tokens[:, :5], cache=cache)
    cache.select(torch.tensor([1, 1, 0]))
    rows = tokens[[1, 1, 0]]
    expected = model(rows)
    torch.testing.assert_close(model(rows[:, 5:8], cache=cache), expected[:, 5:8])

    shorter = cache.truncated(5, 12)
    assert (shorter is None) == bool(words), "a ring has replaced its oldest tokens"
    if shorter is not None:
        parts = [model(part, cache=shorter) for part in rows[:, 5:].split([1, 4, 2], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), expected[:, 5:])


def test_flops_equal_those_counted_by_torch(build):
    model = build("model=gpt", "model/layers=shared_kv", "model/kernel=naive")
    tokens = torch.randint(97, (2, 64))
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    counted = counter.get_total_flops() / tokens.numel()
    assert model.flops_per_token(model.context_length) == pytest.approx(counted, rel=0.01)


def test_adapters_reach_the_queries_and_the_output(build):
    model = build("model=gpt", "model/layers=shared_kv").requires_grad_(False)
    found = {target.layer for target in choose_targets(model, ["query", "*attention.output"])}
    own, shared = ("blocks.0.attention.query_key_value", "blocks.1.attention.query")
    outputs = {f"blocks.{number}.attention.output" for number in (0, 1)}
    assert found == {own, shared} | outputs


def test_kinds_with_equal_masks_and_positions_share():
    position = partial(Rotary, DIM, HEADS, theta=100.0)
    kinds = {
        "a": Layer(mask=sparse_strided(2), position=position()),
        "b": Layer(mask=sparse_strided(3), position=position()),
        "c": Layer(mask=sparse_strided(2), position=position(), attention=SHARED),
    }
    assert stack("a", "b", "c", **kinds).links[2].layer == 0


def recent(queries, keys, *, size):
    distance = queries[:, None] - keys[None, :]
    return (distance >= 0) & (distance < size)


def test_masks_of_one_function_with_other_arguments_differ():
    kinds = {
        "a": Layer(mask=partial(recent, size=2)),
        "b": Layer(mask=partial(recent, size=9)),
        "c": Layer(mask=partial(recent, size=2), attention=SHARED),
    }
    assert stack("a", "b", "c", **kinds).links[2].layer == 0


def test_a_shared_layer_has_the_dropout_of_the_models_attention(build):
    words = ("model=gpt2", "model/layers=shared_kv", "model.dropout=0.1")
    model = build(*words, "model.attention.dropout=0.5")
    assert [block.attention.dropout.p for block in model.blocks] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (
            {"b": Layer(attention=SHARED)},
            r"layers: b is layer 1, and no earlier layer has keys and values of its own .*pattern=\[own,shared\]",
        ),
        (
            {"a": Layer(attention=LSTM), "b": Layer(attention=SHARED)},
            r"layers: b is layer 2, and earlier layers have no keys and values to share \(LSTM\); use model/att",
        ),
        (
            {"a": Layer(mask=WINDOW), "b": Layer(mask=sliding_window(4), attention=SHARED)},
            r"layers: b is layer 2, and .* with this layer's mask and position",
        ),
        (
            {"a": Layer(), "b": Layer(position=NoPosition(), attention=SHARED)},
            r"layers: b is layer 2, and .* with this layer's mask and position",
        ),
        (
            {"a": Layer(), "b": Layer(attention=partial(SHARED, head_dim=8))},
            r"layers: b is layer 2, and head_dim=8 is not that of the keys of layer 1, 4; give both",
        ),
        (
            {"a": Layer(), "b": Layer(attention=partial(SharedKVAttention, num_heads=1))},
            r"layers: b is layer 2, and head_dim=16 is not",
        ),
        (
            {"a": Layer(), "b": Layer(attention=partial(SHARED, num_heads=3, head_dim=4))},
            r"layers: b is layer 2, and num_kv_heads=2 does not divide num_heads=3",
        ),
    ],
)
def test_layer_without_a_source_is_refused(kinds, message):
    with pytest.raises(ValueError, match=message):
        stack(*kinds, **kinds)
