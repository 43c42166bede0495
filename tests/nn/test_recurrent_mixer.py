"""Properties of every token mixer with a state of fixed size."""

from functools import partial

import pytest
import torch

from llm.nn.gated_delta_rule import chunked_gated_delta_rule, recurrent_gated_delta_rule
from llm.nn.gated_deltanet import GatedDeltaNet
from llm.nn.gru import GRU, naive_gru
from llm.nn.lstm import LSTM, naive_lstm
from llm.nn.mamba2 import Mamba2
from llm.nn.masks import causal
from llm.nn.recurrent_mixer import RecurrentState
from llm.nn.state_space_duality import chunked_state_space, recurrent_state_space

DIM, LENGTH = 12, 11
# Chunks of four tokens, so that a text has several and ends within one.
RULE = partial(chunked_gated_delta_rule, chunk_size=4)
SCAN = partial(chunked_state_space, chunk_size=4)
MIXERS = {
    "gated-delta-net": partial(GatedDeltaNet, num_heads=3, recurrence=RULE),
    "gated-delta-net-grouped": partial(
        GatedDeltaNet, num_heads=4, num_key_heads=2, head_dim=2, value_head_dim=5, recurrence=RULE
    ),
    "gated-delta-net-recurrent": partial(
        GatedDeltaNet, num_heads=2, recurrence=recurrent_gated_delta_rule
    ),
    "mamba2": partial(Mamba2, num_heads=4, state_dim=5, recurrence=SCAN),
    "mamba2-grouped": partial(Mamba2, num_heads=4, num_groups=2, state_dim=3, recurrence=SCAN),
    "mamba2-recurrent": partial(
        Mamba2, num_heads=2, state_dim=5, bias=True, recurrence=recurrent_state_space
    ),
    "lstm": LSTM,
    "lstm-naive": partial(LSTM, recurrence=naive_lstm),
    "gru": GRU,
    "gru-naive": partial(GRU, recurrence=naive_gru),
}


@pytest.fixture(params=MIXERS.values(), ids=MIXERS.keys(), scope="module")
def mixer(request):
    """A mixer in float64 with large random parameters, so that every part affects the output."""
    torch.manual_seed(0)
    mixer = request.param(DIM)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixer.double()


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, LENGTH, DIM, generator=generator, dtype=torch.float64)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_output_does_not_depend_on_later_tokens(mixer, x):
    before = mixer(x)
    x[:, 6] += 1
    after = mixer(x)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.isclose(before[:, 6:], after[:, 6:]).all(dim=-1).any()


def test_gradients_reach_every_parameter(mixer, x):
    mixer.zero_grad()
    mixer(x).square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("sizes", [[1] * LENGTH, [2, 6, 1, 2], [LENGTH], [10, 1]])
def test_state_continues_a_text(mixer, x, sizes):
    cache = mixer.new_cache(2, LENGTH, dtype=None, mask=causal)
    parts = [mixer(part, cache=cache) for part in x.split(sizes, dim=1)]
    assert_same(torch.cat(parts, dim=1), mixer(x))
    assert cache.length == LENGTH


@pytest.mark.parametrize("places", [[0, 1, 2], [9, 10], [0, 4, 5, 10]])
@pytest.mark.parametrize("sizes", [[LENGTH], [3, 1, 7], [1] * LENGTH])
def test_padding_changes_nothing_wherever_it_is(mixer, x, places, sizes):
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[0, places] = False
    cache = mixer.new_cache(2, LENGTH, dtype=None, mask=causal)
    texts, masks = x.split(sizes, dim=1), real.split(sizes, dim=1)
    parts = [
        mixer(text, cache=cache, attention_mask=mask)
        for text, mask in zip(texts, masks, strict=True)
    ]
    output = torch.cat(parts, dim=1)
    assert output.isfinite().all()
    for row in range(2):
        alone = mixer.new_cache(1, LENGTH, dtype=None, mask=causal)
        assert_same(output[row, real[row]], mixer(x[row : row + 1, real[row]], cache=alone)[0])
        for found, expected in zip(cache.tensors(), alone.tensors(), strict=True):
            assert_same(found[row], expected[0])


def test_padding_without_a_state_changes_nothing(mixer, x):
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[0, :4] = False
    output = mixer(x, attention_mask=real)
    assert_same(output[0, 4:], mixer(x[:1, 4:])[0])
    assert_same(output[1], mixer(x[1:])[0])


@pytest.mark.parametrize("border", [1, 3, 4, 10])
def test_documents_equal_separate_texts(mixer, x, border):
    ids = torch.zeros(2, LENGTH, dtype=torch.int64)
    ids[0, :border] = 5
    output = mixer(x, document_ids=ids)
    assert_same(output[0, :border], mixer(x[:1, :border])[0])
    assert_same(output[0, border:], mixer(x[:1, border:])[0])
    assert_same(output[1], mixer(x[1:])[0])
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[:, -1] = False
    ids[:, -1] = -1
    padded = mixer(x, document_ids=ids, attention_mask=real)
    assert_same(padded[real], output[real])


def test_state_does_not_grow_and_is_at_least_float32(mixer, x):
    cache = mixer.new_cache(2, 3, dtype=torch.bfloat16, mask=causal)
    assert cache.is_bounded
    assert max(part.element_size() for part in cache.tensors()) == 4
    mixer = mixer.bfloat16()
    size = cache.nbytes
    for part in x.bfloat16().split(1, dim=1):
        assert mixer(part, cache=cache).dtype == torch.bfloat16
    assert cache.nbytes == size
    mixer.double()


def test_rows_of_a_state_can_be_selected(mixer, x):
    cache = mixer.new_cache(2, LENGTH, dtype=None, mask=causal)
    mixer(x[:, :5], cache=cache)
    cache.select(torch.tensor([1, 0, 1]))
    output = mixer(x[[1, 0, 1], 5:], cache=cache)
    assert_same(output, mixer(x)[[1, 0, 1], 5:])


def test_state_cannot_forget_tokens():
    state = RecurrentState(memory=torch.zeros(1, 2))
    state.advance(3, memory=torch.ones(1, 2))
    state.rewind(0)
    assert (state.length, state.nbytes) == (3, 8)
    with pytest.raises(ValueError, match="count=2: RecurrentState cannot forget tokens"):
        state.rewind(2)


@pytest.mark.parametrize("kind", [GatedDeltaNet, Mamba2, LSTM, GRU])
def test_dropout_sets_outputs_to_zero_in_training_only(kind, x):
    heads = {} if kind in (LSTM, GRU) else {"num_heads": 2}
    mixer = kind(DIM, **heads, dropout=0.5).double()
    whole = mixer.eval()(x)
    assert (whole == 0).sum() == 0
    dropped = mixer.train()(x)
    is_kept = dropped != 0
    assert 0.2 < is_kept.double().mean() < 0.8
    assert_same(dropped[is_kept], 2 * whole[is_kept])


@pytest.mark.parametrize("name", [name for name in MIXERS if name.startswith(("gated", "mamba2"))])
def test_memory_is_computed_in_float32_under_autocast(name):
    torch.manual_seed(0)
    layer = MIXERS[name](DIM)
    recurrence, inputs = layer.recurrence, []

    def recorded(*args, **kwargs):
        inputs.append((args, kwargs))
        return recurrence(*args, **kwargs)

    layer.recurrence = recorded
    cache = layer.new_cache(2, 200, dtype=None, mask=causal)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, 200, DIM), cache=cache)
    ((args, kwargs),) = inputs
    with torch.no_grad():
        _, expected = recurrence(*args, **kwargs)
    assert expected.dtype == torch.float32
    # One rounding to bfloat16 has a relative error of up to 2⁻⁹ = 0.002.
    difference = (cache.parts["memory"] - expected).norm() / expected.norm()
    assert difference < 1e-6
