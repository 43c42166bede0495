import pytest
import torch

from llm.nn.attention import Attention
from llm.nn.kv_cache import Cache, LayerCache

CPU = torch.device("cpu")


def empty(capacity=4):
    return LayerCache((2, 1, capacity, 3), device=CPU, dtype=torch.float32)


def test_columns_are_appended_in_place_and_read_as_views():
    cache = empty()
    first, second = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 1, 3)
    cache.append(first, first + 1)
    keys, values = cache.append(second, second + 1)
    assert torch.equal(keys, torch.cat((first, second), dim=2))
    assert torch.equal(values, keys + 1)
    assert keys.data_ptr() == cache.keys.data_ptr()
    assert cache.length == cache.capacity == 4


def test_a_full_cache_names_the_larger_capacity():
    cache = empty(capacity=4)
    cache.append(*[torch.zeros(2, 1, 3, 3)] * 2)
    with pytest.raises(ValueError, match=r"holds 3 of 4.*no room for 2 more.*capacity=5"):
        cache.append(*[torch.zeros(2, 1, 2, 3)] * 2)
    assert cache.length == 3
    with pytest.raises(ValueError, match="no room"):
        Cache([cache]).describe(2)


def test_the_attention_mask_of_cached_columns_is_kept():
    cache = Cache([empty(), empty()])
    assert cache.positions.tolist() == [[0, 1, 2, 3]] * 2
    assert cache.valid is None
    assert not cache.per_row
    real = torch.tensor([[False, True], [True, True]])
    cache.describe(2, positions=torch.tensor([[-1, 0], [0, 1]]), attention_mask=real)
    assert cache.positions[:, :2].tolist() == [[-1, 0], [0, 1]]
    assert cache.valid.tolist() == [[False, True, True, True], [True] * 4]
    assert cache.per_row


def test_attention_makes_a_cache_of_its_own_shape():
    attention = Attention(16, 4, num_kv_heads=2)
    cache = attention.new_cache(3, 10, dtype=None)
    assert cache.keys.shape == cache.values.shape == (3, 2, 10, 4)
    assert cache.keys.dtype == torch.float32
    assert attention.new_cache(3, 10, dtype=torch.bfloat16).keys.dtype == torch.bfloat16
