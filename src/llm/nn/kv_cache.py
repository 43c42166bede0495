"""The key-value cache: what attention has computed for earlier positions and need not repeat."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class LayerCache:
    """Keys and values of one layer: room for `capacity` columns, the first `length` filled.

    Args:
        keys: (B, K, capacity, D), written in place.
        values: (B, K, capacity, D), written in place.
    """

    def __init__(
        self, keys: Float[Tensor, "B K capacity D"], values: Float[Tensor, "B K capacity D"]
    ) -> None:
        self.keys = keys
        self.values = values
        self.length = 0

    @classmethod
    def empty(
        cls, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype
    ) -> "LayerCache":
        """A cache of the shape (B, K, capacity, D) in which no column is filled."""
        keys, values = (torch.empty(shape, device=device, dtype=dtype) for _ in range(2))
        return cls(keys, values)

    @property
    def capacity(self) -> int:
        """How many columns there is room for."""
        return self.keys.shape[2]

    def append(
        self, keys: Float[Tensor, "B K T D"], values: Float[Tensor, "B K T D"]
    ) -> tuple[Float[Tensor, "B K S D"], Float[Tensor, "B K S D"]]:
        """Writes T new columns; returns views of all the filled ones, old and new.

        Raises:
            ValueError: there is no room for T more.
        """
        start, end = self.length, self.length + keys.shape[2]
        _check_room(start, end, self.capacity)
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def enlarged(self, length: int, capacity: int) -> "LayerCache":
        """A copy of the first `length` columns with room for `capacity`."""
        batch, heads, _, width = self.keys.shape
        shape = (batch, heads, capacity, width)
        copy = LayerCache.empty(shape, self.keys.device, self.keys.dtype)
        copy.keys[:, :, :length] = self.keys[:, :, :length]
        copy.values[:, :, :length] = self.values[:, :, :length]
        return copy


class Cache:
    """One `LayerCache` a layer, and what is known of the columns, which all layers share.

    Args:
        layers: a cache for each layer, alike in batch size and capacity.

    Attributes:
        positions: (B, capacity), the position of each column in its own row's text.
        valid: (B, capacity), False where a column is padding; None while no row is padded.
        per_row: whether the positions were given, so that they may differ from row to row.
    """

    def __init__(self, layers: list[LayerCache]) -> None:
        keys = layers[0].keys
        columns = torch.arange(layers[0].capacity, device=keys.device)
        self.layers = layers
        self.positions: Int[Tensor, "B capacity"] = columns.repeat(keys.shape[0], 1)
        self.valid: Bool[Tensor, "B capacity"] | None = None
        self.per_row = False

    @property
    def length(self) -> int:
        """How many columns are filled."""
        return self.layers[0].length

    @property
    def capacity(self) -> int:
        """How many columns there is room for."""
        return self.layers[0].capacity

    def beginning(self, length: int, capacity: int) -> "Cache":
        """Return a cache of the first `length` columns with room for `capacity`, in this one's memory if it has it.

        Raises:
            ValueError: there are not as many columns, or some are padding or have positions of their own.
        """
        if length > min(layer.length for layer in self.layers) or self.per_row:
            raise ValueError(f"length={length}: give columns that are filled, and of one text")
        layers = self.layers
        if capacity > self.capacity:
            layers = [layer.enlarged(length, capacity) for layer in layers]
        for layer in layers:
            layer.length = length
        return Cache(layers)

    def describe(
        self,
        length: int,
        positions: Int[Tensor, "B T"] | Int[Tensor, "T"] | None = None,
        attention_mask: Bool[Tensor, "B T"] | None = None,
    ) -> None:
        """Records the next `length` columns' positions, and which are padding, before they fill.

        Raises:
            ValueError: there is no room for them.
        """
        new = slice(self.length, self.length + length)
        _check_room(new.start, new.stop, self.capacity)
        if positions is not None:
            self.positions[:, new] = positions
            self.per_row = True
        if attention_mask is not None:
            if self.valid is None:
                self.valid = torch.ones_like(self.positions, dtype=torch.bool)
            self.valid[:, new] = attention_mask


def _check_room(start: int, end: int, capacity: int) -> None:
    if end > capacity:
        raise ValueError(
            f"the cache holds {start} of {capacity} positions and has no room for {end - start} "
            f"more: ask for a larger one, new_cache(batch_size, capacity={end})"
        )
