"""The chunked gated delta rule equals the one written out token by token."""

import pytest
import torch
import torch.nn.functional as F

from llm.nn.gated_delta_rule import chunked_gated_delta_rule, recurrent_gated_delta_rule


def draw(length, *, rows=2, heads=3, dim=4, value_dim=5):
    generator = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query, key = normal(rows, length, heads, dim), normal(rows, length, heads, dim)
    inputs = {
        "query": query,
        "key": F.normalize(key, dim=-1),
        "value": normal(rows, length, heads, value_dim),
        "log_decay": -normal(rows, length, heads).square(),
        "beta": normal(rows, length, heads).sigmoid(),
        "state": normal(rows, heads, dim, value_dim),
    }
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def assert_equal_with_gradients(found, expected, inputs):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    directions = [torch.randn_like(tensor) for tensor in expected]
    found, expected = (
        torch.autograd.grad(outputs, [*inputs.values()], directions)
        for outputs in (found, expected)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 4, 7, 12, 13])
@pytest.mark.parametrize("packed", [False, True])
def test_chunks_equal_the_recurrence_in_value_and_gradient(length, packed):
    inputs = draw(length)
    starts = torch.rand(2, length, generator=torch.Generator().manual_seed(0)) < 0.3
    starts = starts if packed else None
    expected = recurrent_gated_delta_rule(**inputs, starts=starts)
    found = chunked_gated_delta_rule(**inputs, starts=starts, chunk_size=4)
    assert_equal_with_gradients(found, expected, inputs)


def test_state_continues_a_text():
    inputs = draw(9)
    state = inputs.pop("state")
    whole, last = chunked_gated_delta_rule(**inputs, state=state, chunk_size=4)
    parts = []
    for piece in ((0, 5), (5, 6), (6, 9)):
        part = {name: tensor[:, slice(*piece)] for name, tensor in inputs.items()}
        output, state = chunked_gated_delta_rule(**part, state=state, chunk_size=4)
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-12)


def test_full_update_replaces_the_value_of_a_key():
    """With β = 1 and no decay the memory answers the newest value; linear attention would answer the sum."""
    key = torch.tensor([1.0, 0.0]).expand(1, 3, 1, 2)
    value = torch.tensor([3.0, 5.0, 7.0]).view(1, 3, 1, 1)
    ones, zeros = torch.ones(1, 3, 1), torch.zeros(1, 3, 1)
    rule = {"log_decay": zeros, "beta": ones, "state": torch.zeros(1, 1, 2, 1)}
    for function in (recurrent_gated_delta_rule, chunked_gated_delta_rule):
        output, _ = function(key, key, value, **rule)
        assert output.flatten().tolist() == [3, 5, 7]


def test_token_without_update_and_decay_leaves_the_state():
    inputs = draw(6)
    keep = torch.tensor([1, 1, 0, 1, 0, 1], dtype=torch.float64)[:, None]
    inputs |= {name: inputs[name] * keep for name in ("beta", "log_decay")}
    _, state = chunked_gated_delta_rule(**inputs, chunk_size=4)
    real = {n: t if n == "state" else t[:, keep[:, 0] > 0] for n, t in inputs.items()}
    _, expected = recurrent_gated_delta_rule(**real)
    torch.testing.assert_close(state, expected, rtol=0, atol=1e-12)
