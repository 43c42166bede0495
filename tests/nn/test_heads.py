import pytest

from llm.nn.heads import group_size, head_width


def test_head_width_and_group_size():
    assert head_width(768, 12) == 64
    assert head_width(768, 12, head_dim=128) == 128
    assert group_size(8, 8) == 1
    assert group_size(8, 2) == 4


def test_invalid_numbers_of_heads_are_refused_with_valid_ones():
    with pytest.raises(ValueError, match=r"num_heads=5 does not divide dim=12: .* 1, 2, 3, 4"):
        head_width(12, 5)
    with pytest.raises(ValueError, match="num_kv_heads=5 does not divide num_heads=6"):
        group_size(6, 5)
    with pytest.raises(ValueError, match="head_dim=0"):
        head_width(12, 5, head_dim=0)
