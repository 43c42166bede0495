"""Products of decays within chunks."""

import pytest
import torch

from llm.nn.chunked_decay import chunk_decays, chunks, document_starts, joined


@pytest.mark.parametrize("length", [1, 5, 6, 11])
def test_joined_is_the_inverse_of_chunks(length):
    x = torch.randn(2, length, 4, 7)
    parts = chunks(x, 3)
    assert parts.shape == (2, 4, -(-length // 3), 3, 7)
    assert torch.equal(joined(parts, length), x)


def test_chunks_end_with_zeros():
    parts = chunks(torch.ones(1, 4, 2), 3)
    assert parts[0, 0].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_decays_are_products_of_the_decays_between_two_tokens():
    decay = torch.tensor([0.5, 0.1, 0.2], dtype=torch.float64)
    decays = chunk_decays(decay.log().view(1, 1, 1, 3))
    pairwise = [[1, 0, 0], [0.1, 1, 0], [0.02, 0.2, 1]]
    expected = [pairwise, [0.5, 0.05, 0.01], [0.02, 0.2, 1], 0.01]
    for found, value in zip(decays, expected, strict=True):
        torch.testing.assert_close(found[0, 0, 0], torch.tensor(value, dtype=torch.float64))


def test_nothing_passes_the_border_of_a_document():
    starts = document_starts(torch.tensor([[5, 5, 3, 3, 3, 3]]))
    assert starts.tolist() == [[False, False, True, False, False, False]]
    decays = chunk_decays(torch.zeros(1, 1, 2, 3), starts)
    assert decays.pairwise[0, 0].tolist() == [
        [[1, 0, 0], [1, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
    ]
    assert decays.from_start[0, 0].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert decays.to_end[0, 0].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert decays.whole[0, 0].tolist() == [0, 1]


def test_document_that_starts_with_a_chunk_does_not_read_the_state_before_it():
    decays = chunk_decays(torch.zeros(1, 1, 2, 2), document_starts(torch.tensor([[0, 0, 1, 1]])))
    assert decays.from_start[0, 0].tolist() == [[1, 1], [0, 0]]
    assert decays.whole[0, 0].tolist() == [1, 0]


def test_strong_decay_gives_zeros_and_finite_gradients():
    log_decay = torch.full((1, 1, 1, 64), -1000.0, requires_grad=True)
    decays = chunk_decays(log_decay)
    sum(each.sum() for each in decays).backward()
    assert torch.equal(decays.pairwise[0, 0, 0], torch.eye(64))
    assert log_decay.grad.isfinite().all()
