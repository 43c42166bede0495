"""The cache of keys and values: growing, or a ring buffer of a window."""

import pytest
import torch

from llm.generation.prefix_cache import PrefixCache
from llm.nn.attention import Attention
from llm.nn.kv_cache import Cache, LayerCache, WindowCache
from llm.nn.masks import causal, sliding_window

CPU = torch.device("cpu")


def empty(capacity=4, kind=LayerCache):
    return kind((2, 1, capacity, 3), device=CPU, dtype=torch.float32)


def model_cache(*layers, capacity=4):
    return Cache(layers, batch_size=2, capacity=capacity, device=CPU)


def numbered(start, end):
    """Keys whose entries are the index of their token."""
    return torch.arange(float(start), end).view(1, 1, -1, 1).expand(2, 1, -1, 3)


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
        model_cache(cache).describe(5)


def test_the_attention_mask_of_cached_columns_is_kept():
    cache = model_cache(empty(), empty())
    assert cache.positions.tolist() == [[0, 1, 2, 3]] * 2
    assert cache.valid is None
    assert not cache.per_row
    real = torch.tensor([[False, True], [True, True]])
    cache.describe(2, positions=torch.tensor([[-1, 0], [0, 1]]), attention_mask=real)
    assert cache.positions[:, :2].tolist() == [[-1, 0], [0, 1]]
    assert cache.valid.tolist() == [[False, True, True, True], [True] * 4]
    assert cache.per_row


@pytest.mark.parametrize("chunks", [[1] * 9, [2, 1, 1, 5], [9], [4, 4, 1], [7, 2]])
@pytest.mark.parametrize("kind", [LayerCache, WindowCache])
def test_columns_are_the_indices_of_the_returned_keys(kind, chunks):
    cache, start = empty(9 if kind is LayerCache else 4, kind), 0
    for new in chunks:
        columns = cache.columns(start, new)
        keys, values = cache.append(numbered(start, start + new), numbered(start, start + new) + 1)
        assert keys[1, 0, :, 2].tolist() == columns.tolist()
        assert torch.equal(values, keys + 1)
        start += new
        # Every query finds the keys of its window, which has the size of the ring.
        needed = range(0 if kind is LayerCache else max(0, start - new - 3), start)
        assert {*needed} <= {*columns.tolist()}
        assert cache.length == start


def test_window_cache_does_not_grow():
    cache = empty(4, WindowCache)
    before = cache.nbytes
    assert before == 2 * (2 * 1 * 4 * 3) * 4
    cache.append(numbered(0, 100), numbered(0, 100))
    assert cache.nbytes == before
    assert cache.is_bounded
    assert not LayerCache.is_bounded


def test_rows_are_selected_in_order_and_may_repeat():
    cache = model_cache(empty(), empty(4, WindowCache))
    rows = torch.tensor([[False, True], [True, True]])
    cache.describe(2, positions=torch.tensor([[-1, 0], [0, 1]]), attention_mask=rows)
    keys = torch.randn(2, 1, 2, 3)
    for layer in cache.layers:
        layer.append(keys, keys)
    cache.select(torch.tensor([1, 0, 1]))
    assert cache.positions[:, 0].tolist() == [0, -1, 0]
    assert cache.valid[:, 0].tolist() == [True, False, True]
    for layer in cache.layers:
        assert torch.equal(layer.keys[:, :, :2], keys[[1, 0, 1]])


def test_a_cache_is_cut_back_as_far_as_all_its_layers_can_be():
    growing, ring = empty(6), empty(3, WindowCache)
    cache = model_cache(growing, ring, capacity=6)
    for layer in cache.layers:
        layer.append(numbered(0, 3), numbered(0, 3))
    cache = cache.truncated(1, 6)
    assert (cache.length, growing.length, ring.length) == (1, 1, 1)
    assert cache.truncated(2, 6) is None, "there are fewer columns"
    for layer in cache.layers:
        layer.append(numbered(1, 5), numbered(1, 5))
    assert cache.truncated(3, 6) is None, "the ring has lost column 1"
    cache = cache.truncated(4, 8)
    assert growing.capacity == cache.capacity == 8
    assert growing.keys[0, 0, :4, 0].tolist() == [0, 1, 2, 3]
    keys, _ = ring.append(numbered(4, 6), numbered(4, 6))
    assert keys[0, 0, :, 0].tolist() == [2, 3, 4, 5]


def test_a_ring_for_a_short_text_grows_up_to_its_window(build):
    """As in a chat, whose first turn is shorter than the window and whose later turns continue its cache."""
    model = build("model=mistral", "model.mask.size=6").double().eval()
    tokens = torch.arange(12)[None]
    memory, cache = PrefixCache(), model.new_cache(1, capacity=3)
    model(tokens[:, :3], cache=cache)
    memory.keep(range(3), cache)
    longer = memory.recall(range(12), capacity=12)
    assert [layer.keys.shape[2] for layer in longer.layers] == [6, 6]
    parts = [
        model(part, cache=longer) for part in tokens[:, longer.length :].split([4, 1, 1, 3], 1)
    ]
    expected = model(tokens)[:, 12 - sum(part.shape[1] for part in parts) :]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-10)


def test_a_layer_that_cannot_forget_says_so():
    ring = empty(2, WindowCache)
    ring.append(numbered(0, 5), numbered(0, 5))
    with pytest.raises(ValueError, match="count=2: WindowCache cannot forget tokens"):
        ring.rewind(2)
    ring.rewind(1)
    assert not ring.can_rewind(1), "the column before the window is lost"
    short = empty(4, WindowCache)
    short.append(numbered(0, 5), numbered(0, 5))
    short.rewind(1)
    assert not short.can_rewind(1), "column 0 was replaced by column 4"


def test_attention_makes_a_cache_of_its_own_shape_and_window():
    attention = Attention(16, 4, num_kv_heads=2)
    cache = attention.new_cache(3, 10, dtype=None, mask=causal)
    assert cache.keys.shape == cache.values.shape == (3, 2, 10, 4)
    assert cache.keys.dtype == torch.float32
    assert (
        attention.new_cache(3, 10, dtype=torch.bfloat16, mask=causal).keys.dtype == torch.bfloat16
    )
    ring = attention.new_cache(3, 10, dtype=None, mask=sliding_window(6))
    assert isinstance(ring, WindowCache)
    assert ring.keys.shape == (3, 2, 6, 4)
