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


def test_pictures_in_the_docstrings_are_true():
    results = doctest.testmod(masks)
    assert results.attempted >= 4
    assert results.failed == 0


def test_last_queries_of_longer_keys():
    assert draw_mask(causal, 2, num_keys=4) == "■ ■ ■ ·\n■ ■ ■ ■"
    assert draw_mask(sliding_window(2), 1, num_keys=4) == "· · ■ ■"


def test_causal_is_the_lower_triangle():
    places = torch.arange(9)
    assert torch.equal(causal(places, places), torch.ones(9, 9).tril().bool())


def test_window_as_wide_as_the_text_is_causal():
    places = torch.arange(9)
    assert torch.equal(sliding_window(9)(places, places), causal(places, places))


def test_empty_window_is_refused():
    with pytest.raises(ValueError, match="size=0"):
        sliding_window(0)


def test_all_conditions_hold_together_and_each_query_sees_itself():
    documents = torch.tensor([[1, 1, 2, 2], [1, 2, 3, 4]])
    real = torch.tensor([[True, True, True, False], [False, True, True, True]])
    places = torch.arange(4)
    parts = (causal, same_document(documents), not_padding(real))
    allowed = both(*parts)(places, places)
    expected = parts[0](places, places) & parts[1](places, places) & parts[2](places, places)
    assert torch.equal(allowed, expected)
    assert allowed.diagonal(dim1=-2, dim2=-1).all()


def test_a_mask_and_a_bias_in_one():
    bias = torch.arange(8.0).view(2, 2, 2)
    mask = as_bias(torch.tensor([[[True, False], [True, True]]]), bias)
    assert mask.tolist() == [[[0, -torch.inf], [2, 3]], [[4, -torch.inf], [6, 7]]]
