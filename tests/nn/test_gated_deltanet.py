"""Gated DeltaNet equals that of transformers' Qwen3-Next."""

from functools import partial

import pytest
import torch
from float64_mode import Float64
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from llm.nn.gated_delta_rule import chunked_gated_delta_rule, recurrent_gated_delta_rule
from llm.nn.gated_deltanet import GatedDeltaNet, unit_length

DIM, KEYS, VALUES, HEADS, KEY_HEADS = 24, 3, 5, 4, 2


@pytest.fixture
def theirs():
    config = Qwen3NextConfig(
        hidden_size=DIM,
        linear_num_value_heads=HEADS,
        linear_num_key_heads=KEY_HEADS,
        linear_key_head_dim=KEYS,
        linear_value_head_dim=VALUES,
        linear_conv_kernel_dim=4,
        rms_norm_eps=1e-5,
        num_hidden_layers=1,
    )
    torch.manual_seed(0)
    layer = Qwen3NextGatedDeltaNet(config, 0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer.double()


@pytest.fixture
def ours(theirs):
    layer = GatedDeltaNet(
        DIM,
        HEADS,
        num_key_heads=KEY_HEADS,
        head_dim=KEYS,
        value_head_dim=VALUES,
        eps=1e-5,
        recurrence=partial(chunked_gated_delta_rule, chunk_size=4),
    ).double()
    layer.load_state_dict(converted(theirs))
    return layer


def converted(theirs):
    """Return our tensors; theirs have the rows of each key head together: q, k, v and gate of its group."""
    group = HEADS // KEY_HEADS
    rows = theirs.in_proj_qkvz.weight.unflatten(0, (KEY_HEADS, -1))
    parts = rows.split((KEYS, KEYS, group * VALUES, group * VALUES), dim=1)
    query, key, value, gate = (part.flatten(0, 1) for part in parts)
    beta, decay = theirs.in_proj_ba.weight.unflatten(0, (KEY_HEADS, -1)).split(group, dim=1)
    return {
        "A_log": theirs.A_log,
        "dt_bias": theirs.dt_bias,
        "query_key_value.weight": torch.cat((query, key, value)),
        "gate.weight": gate,
        "beta.weight": beta.flatten(0, 1),
        "decay.weight": decay.flatten(0, 1),
        "convolution.weight": theirs.conv1d.weight.squeeze(1),
        "norm.weight": theirs.norm.weight,
        "output.weight": theirs.out_proj.weight,
    }


@pytest.mark.parametrize("length", [1, 4, 11])
def test_output_and_gradients_equal_those_of_transformers(ours, theirs, length):
    x = torch.randn(2, length, DIM, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, length, DIM, dtype=torch.float64)
    with Float64():
        expected = theirs(x)
        gradients = torch.autograd.grad(expected, [x, theirs.A_log, theirs.dt_bias], direction)
    found = ours(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    found = torch.autograd.grad(found, [x, ours.A_log, ours.dt_bias], direction)
    torch.testing.assert_close(found, gradients, rtol=0, atol=1e-9)


def test_output_of_texts_padded_on_the_left_equals_that_of_transformers(ours, theirs):
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    real = torch.arange(9) >= torch.tensor([[0], [4]])
    with Float64():
        expected = theirs(x, attention_mask=real)
    found = ours(x, attention_mask=real)
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-10)


def test_parameters_of_the_decay_begin_as_in_the_paper():
    torch.manual_seed(0)
    layer = GatedDeltaNet(64, 64)
    assert layer.A_log.exp().min() > 0.0
    assert layer.A_log.exp().max() < 16
    assert 5 < layer.A_log.exp().mean() < 11
    assert torch.equal(layer.dt_bias, torch.ones(64))


def test_unit_length_of_zeros_is_zeros():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(unit_length(x), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="num_heads=5 does not divide dim=12"):
        GatedDeltaNet(12, 5)
    with pytest.raises(ValueError, match="num_key_heads=2 does not divide num_heads=3"):
        GatedDeltaNet(12, 3, num_key_heads=2)


def by_products(query, key, value, *, log_decay, beta, state, starts=None):
    """Compute the rule token by token, with each product as one of matrices, which torch counts."""
    outputs = []
    for t in range(query.shape[1]):
        state = state * log_decay[:, t, :, None, None].exp()
        stored = (key[:, t, :, None] @ state).squeeze(2)
        change = beta[:, t, :, None] * (value[:, t] - stored)
        state = state + key[:, t, :, :, None] @ change[:, :, None]
        outputs.append((query[:, t, :, None] @ state).squeeze(2))
    return torch.stack(outputs, dim=1), state


def test_mixing_flops_equal_those_counted_by_torch(ours):
    shapes = (2, 6, HEADS, KEYS), (2, 6, HEADS, KEYS), (2, 6, HEADS, VALUES)
    query, key, value = (torch.randn(shape, requires_grad=True) for shape in shapes)
    others = {
        "log_decay": -torch.rand(2, 6, HEADS),
        "beta": torch.rand(2, 6, HEADS),
        "state": torch.randn(2, HEADS, KEYS, VALUES, requires_grad=True),
    }
    with FlopCounterMode(display=False) as counter:
        found = by_products(query, key, value, **others)
        (found[0].sum() + found[1].sum()).backward()
    torch.testing.assert_close(found, recurrent_gated_delta_rule(query, key, value, **others))
    assert ours.mixing_flops(keys=64) == counter.get_total_flops() / 12
