"""Mamba-2 equals that of transformers."""

from functools import partial

import pytest
import torch
from float64_mode import Float64
from torch.utils.flop_counter import FlopCounterMode
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from llm.nn.mamba2 import Mamba2
from llm.nn.state_space_duality import chunked_state_space, recurrent_state_space

DIM, HEADS, STATE = 12, 4, 5


@pytest.fixture(params=[(1, False), (2, True)], ids=["one-group", "two-groups-and-biases"])
def pair(request):
    groups, bias = request.param
    config = Mamba2Config(
        hidden_size=DIM,
        num_heads=HEADS,
        head_dim=2 * DIM // HEADS,
        state_size=STATE,
        n_groups=groups,
        use_bias=bias,
        chunk_size=4,
        num_hidden_layers=1,
    )
    torch.manual_seed(0)
    theirs = Mamba2Mixer(config, 0).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    scan = partial(chunked_state_space, chunk_size=4)
    ours = Mamba2(DIM, HEADS, state_dim=STATE, num_groups=groups, bias=bias, recurrence=scan)
    ours.double()
    names = {"in_proj": "input", "out_proj": "output", "conv1d": "convolution"}
    state = {}
    for name, tensor in theirs.state_dict().items():
        first, *rest = name.split(".")
        state[".".join((names.get(first, first), *rest))] = tensor
    state["convolution.weight"] = state["convolution.weight"].squeeze(1)
    ours.load_state_dict(state)
    return ours, theirs.eval()


@pytest.mark.parametrize("length", [1, 4, 11])
def test_output_and_gradients_equal_those_of_transformers(pair, length):
    ours, theirs = pair
    x = torch.randn(2, length, DIM, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, length, DIM, dtype=torch.float64)
    names = ("A_log", "D", "dt_bias")
    with Float64():
        expected = theirs(x)
        parameters = [x, *(theirs.get_parameter(name) for name in names)]
        gradients = torch.autograd.grad(expected, parameters, direction)
    found = ours(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    parameters = [x, *(ours.get_parameter(name) for name in names)]
    found = torch.autograd.grad(found, parameters, direction)
    torch.testing.assert_close(found, gradients, rtol=0, atol=1e-9)


def test_output_of_texts_padded_on_the_left_equals_that_of_transformers(pair):
    # Their padding passes the bias of the input projection into the convolution; ours is skipped.
    ours, theirs = pair
    if theirs.use_bias:
        return
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    real = torch.arange(9) >= torch.tensor([[0], [4]])
    with Float64():
        expected = theirs(x, attention_mask=real)
    found = ours(x, attention_mask=real)
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-10)


def test_steps_begin_within_their_bounds():
    torch.manual_seed(0)
    layer = Mamba2(64, 64, min_step=0.01, max_step=0.1)
    step = torch.nn.functional.softplus(layer.dt_bias)
    assert 0.0099 < step.min() < 0.013
    assert 0.07 < step.max() < 0.101
    torch.testing.assert_close(layer.A_log.exp(), torch.arange(1.0, 65))
    assert torch.equal(layer.D, torch.ones(64))


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="num_heads=5 does not divide dim=24"):
        Mamba2(12, 5)
    with pytest.raises(ValueError, match="num_groups=3 does not divide num_heads=4"):
        Mamba2(12, 4, num_groups=3)


def by_products(x, *, log_decay, b, c, state, starts=None):
    """Compute the recurrence token by token, with each product as one of matrices, which torch counts."""
    outputs = []
    for t in range(x.shape[1]):
        state = state * log_decay[:, t, :, None, None].exp() + b[:, t, ..., None] @ x[:, t, :, None]
        outputs.append((c[:, t, :, None] @ state).squeeze(2))
    return torch.stack(outputs, dim=1), state


def test_mixing_flops_equal_those_counted_by_torch():
    layer = Mamba2(DIM, HEADS, state_dim=STATE)
    x, b, c = (
        torch.randn(2, 6, HEADS, size, requires_grad=True)
        for size in (2 * DIM // HEADS, STATE, STATE)
    )
    state = torch.randn(2, *layer.memory_shape, requires_grad=True)
    others = {"log_decay": -torch.rand(2, 6, HEADS), "b": b, "c": c, "state": state}
    with FlopCounterMode(display=False) as counter:
        found = by_products(x, **others)
        (found[0].sum() + found[1].sum()).backward()
    torch.testing.assert_close(found, recurrent_state_space(x, **others))
    assert layer.mixing_flops(keys=64) == counter.get_total_flops() / 12
