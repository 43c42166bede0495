import doctest

import pytest
import torch

from llm.nn import masks
from llm.nn.masks import (
    as_bias,
    both,
    causal,
    draw_mask,
    not_padding,
    same_document,
    sliding_window,
)


def test_pictures_in_the_docstrings_are_correct():
    results = doctest.testmod(masks)
    assert results.attempted >= 4
    assert results.failed == 0


def test_queries_are_aligned_with_the_last_keys():
    assert draw_mask(causal, 2, num_keys=4) == "■ ■ ■ ·\n■ ■ ■ ■"
    assert draw_mask(sliding_window(2), 1, num_keys=4) == "· · ■ ■"


def test_causal_is_the_lower_triangle():
    positions = torch.arange(9)
    assert torch.equal(causal(positions, positions), torch.ones(9, 9).tril().bool())


def test_window_as_wide_as_the_text_is_causal():
    positions = torch.arange(9)
    assert torch.equal(sliding_window(9)(positions, positions), causal(positions, positions))


def test_empty_window_is_refused():
    with pytest.raises(ValueError, match="size=0"):
        sliding_window(0)


def test_both_combines_masks_and_each_query_sees_itself():
    documents = torch.tensor([[1, 1, 2, 2], [1, 2, 3, 4]])
    real = torch.tensor([[True, True, True, False], [False, True, True, True]])
    positions = torch.arange(4)
    parts = (causal, same_document(documents), not_padding(real))
    allowed = both(*parts)(positions, positions)
    expected = (
        parts[0](positions, positions)
        & parts[1](positions, positions)
        & parts[2](positions, positions)
    )
    assert torch.equal(allowed, expected)
    assert allowed.diagonal(dim1=-2, dim2=-1).all()


def test_as_bias_combines_a_mask_and_a_bias():
    bias = torch.arange(8.0).view(2, 2, 2)
    mask = as_bias(torch.tensor([[[True, False], [True, True]]]), bias)
    assert mask.tolist() == [[[0, -torch.inf], [2, 3]], [[4, -torch.inf], [6, 7]]]
