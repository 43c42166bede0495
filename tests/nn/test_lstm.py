"""The LSTM written out equals torch's."""

import pytest
import torch
from ranks import on_ranks
from torch import nn

from llm.nn.gru import GRU
from llm.nn.lstm import LSTM, fused_lstm, naive_lstm

DIM = 6


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    return nn.LSTM(DIM, DIM, batch_first=True, dtype=torch.float64)


def ours(theirs, recurrence):
    layer = LSTM(DIM, recurrence=recurrence).double()
    with torch.no_grad():
        layer.input_weight.copy_(theirs.weight_ih_l0)
        layer.recurrent_weight.copy_(theirs.weight_hh_l0)
        layer.bias.copy_(theirs.bias_ih_l0 + theirs.bias_hh_l0)
    return layer


@pytest.mark.parametrize("recurrence", [naive_lstm, fused_lstm])
def test_layer_equals_that_of_torch(theirs, recurrence):
    layer = ours(theirs, recurrence)
    x = torch.randn(3, 7, DIM, dtype=torch.float64)
    cache = layer.new_state(3)
    expected, (hidden, cell) = theirs(x)
    torch.testing.assert_close(layer(x, cache=cache), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(cache.parts, {"hidden": hidden[0], "cell": cell[0]})


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_fused_equals_naive_in_value_and_gradient(theirs, masked, packed):
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(3, 9, generator=generator) < 0.7
    real[1] = False  # a row of padding alone
    starts = torch.rand(3, 9, generator=generator) < 0.3
    inputs = {
        "x": torch.randn(3, 9, DIM, generator=generator, dtype=torch.float64),
        "hidden": torch.randn(3, DIM, generator=generator, dtype=torch.float64),
        "cell": torch.randn(3, DIM, generator=generator, dtype=torch.float64),
        "input_weight": theirs.weight_ih_l0.detach(),
        "recurrent_weight": theirs.weight_hh_l0.detach(),
        "bias": theirs.bias_ih_l0.detach(),
    }
    x, hidden, cell, *weights = (tensor.requires_grad_() for tensor in inputs.values())
    names = ("input_weight", "recurrent_weight", "bias")
    shown = real if masked else torch.ones_like(real)
    results = []
    for function in (naive_lstm, fused_lstm):
        output, state = function(
            *(x, (hidden, cell)),
            **dict(zip(names, weights, strict=True)),
            real=real if masked else None,
            starts=starts if packed else None,
        )
        results.append((output[shown], *state))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)
    directions = [torch.randn_like(each) for each in results[0]]
    expected, found = (
        torch.autograd.grad(each, [*inputs.values()], directions) for each in results
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_forget_gate_begins_open():
    bias = LSTM(DIM).bias
    assert bias[DIM : 2 * DIM].tolist() == [1.0] * DIM
    assert not bias[:DIM].any()
    assert not bias[2 * DIM :].any()


def test_dropout_acts_on_the_output_in_training_only():
    torch.manual_seed(0)
    layer, x = LSTM(DIM, dropout=0.5), torch.randn(2, 5, DIM)
    assert (layer(x) == 0).any()
    layer.eval()
    assert not (layer(x) == 0).any()


@pytest.mark.parametrize("recurrence", [naive_lstm, fused_lstm])
def test_autocast_computes_in_its_dtype(recurrence):
    torch.manual_seed(0)
    layer, x = LSTM(DIM, recurrence=recurrence), torch.randn(2, 5, DIM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    low.float().sum().backward()
    assert layer.bias.grad.dtype == torch.float32
    torch.testing.assert_close(low.float(), layer(x), rtol=0.05, atol=0.02)


def compile_cells() -> None:
    for make in (LSTM, GRU):
        layer, x = make(DIM), torch.randn(2, 5, DIM)
        ids = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 2]])
        for inputs in ({}, {"document_ids": ids}):
            compiled = torch.compile(layer, backend="aot_eager")
            torch.testing.assert_close(compiled(x, **inputs), layer(x, **inputs))


def test_compiled_layer_equals_the_layer():
    # In another process: the shape checks of this one would be traced as well.
    on_ranks(1, compile_cells, timeout=280)
