"""The key-value cache, with which a forward pass computes only the position of the new token."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class LayerCache:
    """Keys and values of one layer, each of `shape` (B, K, capacity, D); the first `length` columns are filled."""

    def __init__(
        self, shape: tuple[int, int, int, int], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.keys: Float[Tensor, "B K capacity D"] = torch.empty(shape, device=device, dtype=dtype)
        self.values: Float[Tensor, "B K capacity D"] = torch.empty_like(self.keys)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Number of columns that the cache can hold."""
        return self.keys.shape[2]

    def append(
        self, keys: Float[Tensor, "B K T D"], values: Float[Tensor, "B K T D"]
    ) -> tuple[Float[Tensor, "B K S D"], Float[Tensor, "B K S D"]]:
        """Write T new columns and return views of all filled columns, old and new.

        Raises:
            ValueError: fewer than T columns are free.
        """
        start, end = self.length, self.length + keys.shape[2]
        _check_room(start, end, capacity=self.capacity)
        # Written in place: concatenation would copy the whole cache for every token.
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def enlarge(self, length: int, capacity: int) -> "LayerCache":
        """Return a copy of the first `length` columns with room for `capacity`."""
        batch, heads, _, width = self.keys.shape
        shape = (batch, heads, capacity, width)
        copy = LayerCache(shape, device=self.keys.device, dtype=self.keys.dtype)
        copy.append(self.keys[:, :, :length], self.values[:, :, :length])
        return copy


class Cache:
    """One `LayerCache` per layer, and the positions and padding of the columns.

    Args:
        layers: caches of one batch size and capacity.

    Attributes:
        positions: (B, capacity), the position of each column in the text of its row.
        valid: (B, capacity), False where a column is padding; None if no row is padded.
        per_row: whether positions were given explicitly, so that rows may differ.
    """

    def __init__(self, layers: list[LayerCache]) -> None:
        keys = layers[0].keys
        # By default column i holds position i in every row: (capacity) -> (B, capacity).
        columns = torch.arange(layers[0].capacity, device=keys.device)
        self.layers = layers
        self.positions: Int[Tensor, "B capacity"] = columns.repeat(keys.shape[0], 1)
        self.valid: Bool[Tensor, "B capacity"] | None = None
        self.per_row = False

    @property
    def length(self) -> int:
        """Number of filled columns."""
        return self.layers[0].length

    @property
    def capacity(self) -> int:
        """Number of columns that the cache can hold."""
        return self.layers[0].capacity

    def truncate(self, length: int, capacity: int) -> "Cache":
        """Return a cache of the first `length` columns with room for `capacity`, in the same memory if they fit.

        Raises:
            ValueError: fewer columns are filled, or their positions were given explicitly.
        """
        if length > min(layer.length for layer in self.layers) or self.per_row:
            raise ValueError(
                f"length={length}: choose filled columns of a text without explicit positions"
            )
        layers = self.layers
        if capacity > self.capacity:
            layers = [layer.enlarge(length, capacity) for layer in layers]
        for layer in layers:
            layer.length = length
        # The layers keep their keys and values; positions and padding are those of a new cache.
        return Cache(layers)

    def describe(
        self,
        length: int,
        *,
        positions: Int[Tensor, "B T"] | Int[Tensor, "T"] | None = None,
        attention_mask: Bool[Tensor, "B T"] | None = None,
    ) -> None:
        """Record positions and padding of the next `length` columns, before they are filled.

        Raises:
            ValueError: fewer columns are free.
        """
        new = slice(self.length, self.length + length)
        _check_room(new.start, new.stop, capacity=self.capacity)
        if positions is not None:
            self.positions[:, new] = positions
            self.per_row = True
        if attention_mask is not None:
            # None until a row is padded: without padding, attention needs no mask.
            if self.valid is None:
                self.valid = torch.ones_like(self.positions, dtype=torch.bool)
            self.valid[:, new] = attention_mask


def _check_room(start: int, end: int, *, capacity: int) -> None:
    if end > capacity:
        raise ValueError(
            f"the cache holds {start} of {capacity} positions and has no room for {end - start} "
            f"more: make a larger one with new_cache(batch_size, capacity={end})"
        )
