"""The chunked state space recurrence equals the one written out token by token."""

import pytest
import torch

from llm.nn.state_space_duality import chunked_state_space, recurrent_state_space


def draw(length):
    generator = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {
        "x": normal(2, length, 3, 5),
        "log_decay": -normal(2, length, 3).square(),
        "b": normal(2, length, 3, 4),
        "c": normal(2, length, 3, 4),
        "state": normal(2, 3, 4, 5),
    }
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


@pytest.mark.parametrize("length", [1, 2, 4, 7, 12, 13])
@pytest.mark.parametrize("packed", [False, True])
def test_chunks_equal_the_recurrence_in_value_and_gradient(length, packed):
    inputs = draw(length)
    starts = torch.rand(2, length, generator=torch.Generator().manual_seed(0)) < 0.3
    starts = starts if packed else None
    expected = recurrent_state_space(**inputs, starts=starts)
    found = chunked_state_space(**inputs, starts=starts, chunk_size=4)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    directions = [torch.randn_like(tensor) for tensor in expected]
    torch.testing.assert_close(
        torch.autograd.grad(found, [*inputs.values()], directions, allow_unused=True),
        torch.autograd.grad(expected, [*inputs.values()], directions, allow_unused=True),
        rtol=0,
        atol=1e-10,
    )


def test_state_continues_a_text():
    inputs = draw(9)
    state = inputs.pop("state")
    whole, last = chunked_state_space(**inputs, state=state, chunk_size=4)
    parts = []
    for piece in ((0, 5), (5, 6), (6, 9)):
        part = {name: tensor[:, slice(*piece)] for name, tensor in inputs.items()}
        output, state = chunked_state_space(**part, state=state, chunk_size=4)
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-12)


def test_without_decay_the_output_is_attention_without_softmax():
    inputs = draw(6)
    inputs |= {name: torch.zeros_like(inputs[name]) for name in ("log_decay", "state")}
    output, _ = chunked_state_space(**inputs, chunk_size=4)
    scores = torch.einsum("bihn,bjhn->bhij", inputs["c"], inputs["b"]).tril()
    expected = torch.einsum("bhij,bjhp->bihp", scores, inputs["x"])
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
