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
    prefix,
    same_document,
    sliding_window,
    sparse_fixed,
    sparse_strided,
    window_and_first,
)


def test_pictures_in_the_docstrings_are_correct():
    results = doctest.testmod(masks)
    assert results.attempted >= 8
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sliding_window(0), "size=0"),
        (lambda: sparse_strided(0), "stride=0: give 1 or more"),
        (lambda: sparse_fixed(0), "stride=0: give 1 or more"),
        (lambda: sparse_fixed(4, summary=5), "summary=5: give 1 to 4, the size of a block"),
        (lambda: window_and_first(0, 1), "size=0: give 1 or more"),
        (lambda: window_and_first(1, 0), "first=0: give 1 or more"),
    ],
)
def test_sizes_that_hide_everything_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("predicate", [sparse_strided(4), sparse_fixed(4), sparse_fixed(4, 2)])
def test_sparse_masks_reach_every_earlier_position_in_two_layers(predicate):
    index = torch.arange(32)
    allowed = predicate(index, index)
    assert torch.equal(allowed & causal(index, index), allowed)
    assert torch.equal((allowed.float() @ allowed.float()) > 0, causal(index, index))
    assert allowed.sum(dim=1).max() <= 4 + 2 * 32 // 4


def test_prefix_is_visible_from_everywhere_and_the_rest_is_causal():
    index = torch.arange(6)
    assert torch.equal(prefix(0)(index, index), causal(index, index))
    rows = prefix(torch.tensor([0, 2]))(index, index)
    assert torch.equal(rows[0], causal(index, index))
    assert torch.equal(rows[1], prefix(2)(index, index))
    assert rows[1][:2, :2].all()
    assert not rows[1][:2, 2:].any()


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
