"""The key-value cache, with which a forward pass computes only the position of the new token."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm.nn.layer_state import LayerState
from llm.nn.masks import Predicate, SlidingWindow

Shape = tuple[int, int, int, int]


class KeysAndValues(LayerState):
    """Keys and values of one attention layer.

    Args:
        shape: that of the keys, (B, K, columns, D).
        device: device of both.
        dtype: dtype of both.
        value_dim: width V of a value; None means D.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        device: torch.device,
        dtype: torch.dtype,
        value_dim: int | None = None,
    ) -> None:
        self.keys: Float[Tensor, "B K columns D"] = torch.empty(shape, device=device, dtype=dtype)
        self.values: Float[Tensor, "B K columns V"] = self.keys.new_empty(
            *shape[:-1], value_dim or shape[-1]
        )

    @abstractmethod
    def append(
        self, keys: Float[Tensor, "B K T D"], values: Float[Tensor, "B K T V"]
    ) -> tuple[Float[Tensor, "B K S D"], Float[Tensor, "B K S V"]]:
        """Write T new columns and return the columns that the new queries may need, old and new."""

    @abstractmethod
    def columns(self, start: int, new: int) -> Int[Tensor, "S"]:
        """Return the index in the text of each column that `append` returns for `new` tokens after `start`."""

    def tensors(self) -> Iterable[Tensor]:
        """Return keys and values."""
        return self.keys, self.values

    def select(self, rows: Int[Tensor, "rows"]) -> None:
        """Keep some rows of the batch, in the given order."""
        self.keys, self.values = self.keys[rows], self.values[rows]

    def _add_columns(self, more: int) -> None:
        """Add empty columns after the others; a number below 1 changes nothing."""
        if more > 0:
            pad = (0, 0, 0, more)  # columns are the second last axis
            self.keys = torch.nn.functional.pad(self.keys, pad)
            self.values = torch.nn.functional.pad(self.values, pad)


class LayerCache(KeysAndValues):
    """Keys and values of all tokens; the first `length` of `capacity` columns are filled."""

    is_bounded = False

    @property
    def capacity(self) -> int:
        """Number of columns that the cache can hold."""
        return self.keys.shape[2]

    def append(
        self, keys: Float[Tensor, "B K T D"], values: Float[Tensor, "B K T V"]
    ) -> tuple[Float[Tensor, "B K S D"], Float[Tensor, "B K S V"]]:
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

    def columns(self, start: int, new: int) -> Int[Tensor, "S"]:
        """Return the index in the text of each column: all from the first on."""
        return torch.arange(start + new, device=self.keys.device)

    def can_rewind(self, count: int) -> bool:
        """Return whether so many tokens are stored."""
        return count <= self.length

    def enlarge(self, capacity: int) -> None:
        """Make room for `capacity` tokens in all."""
        self._add_columns(capacity - self.capacity)


class WindowCache(KeysAndValues):
    """Keys and values of the last tokens in a ring buffer, for a layer whose mask is a sliding window.

    The token at index i of the text is in column i modulo the number of columns, so a new token replaces the one
    that has just left the window. A text that is shorter than the window needs fewer columns.

    Args:
        shape: that of the keys, (B, K, columns, D).
        window: number of keys that a query attends to, its own included; None means the number of columns.
        others: the other arguments of `KeysAndValues`.
    """

    is_bounded = True
    _written = 0  # the largest length so far: a replaced column is lost, also if tokens are forgotten again

    def __init__(self, shape: Shape, *, window: int | None = None, **others: Any) -> None:
        super().__init__(shape, **others)
        self.window = shape[2] if window is None else window

    def append(
        self, keys: Float[Tensor, "B K T D"], values: Float[Tensor, "B K T V"]
    ) -> tuple[Float[Tensor, "B K S D"], Float[Tensor, "B K S V"]]:
        """Write T new columns and return those that the new queries may need, in the order of `columns`."""
        size, new = self.keys.shape[2], keys.shape[2]
        start, self.length = self.length, self.length + new
        self._written = max(self._written, self.length)
        if new == 1:
            self._write(start, keys, values)
            filled = min(self.length, size)
            return self.keys[:, :, :filled], self.values[:, :, :filled]
        # The first new query still needs columns that the last new keys replace: read before writing.
        old = self.columns(start, new)[:-new] % size
        result = tuple(
            torch.cat((kept[:, :, old], added), dim=2)
            for kept, added in ((self.keys, keys), (self.values, values))
        )
        last = min(new, size)
        self._write(self.length - last, keys[:, :, -last:], values[:, :, -last:])
        return result[0], result[1]

    def columns(self, start: int, new: int) -> Int[Tensor, "S"]:
        """Return the index in the text of each column that `append` returns."""
        device, size = self.keys.device, self.keys.shape[2]
        end = start + new
        if new > 1:  # in order: what is kept of the old tokens, then the new ones
            return torch.arange(max(0, start - size + 1), end, device=device)
        # In the order of the ring: column c has the last index that is c modulo its size.
        column = torch.arange(min(end, size), device=device)
        return end - 1 - (end - 1 - column) % size

    def enlarge(self, capacity: int) -> None:
        """Make room for `capacity` tokens in all, or for those of the window."""
        # Fewer columns than the window were made for fewer tokens, so no column was replaced yet.
        self._add_columns(min(capacity, self.window) - self.keys.shape[2])

    def can_rewind(self, count: int) -> bool:
        """Return whether the columns before the last `count` tokens are still there."""
        # The newest token has replaced a column that only tokens before the last one need.
        is_unwrapped = self._written <= self.keys.shape[2]
        return count <= self.length and (is_unwrapped or self.length - count >= self._written - 1)

    def _write(self, start: int, keys: Tensor, values: Tensor) -> None:
        column = torch.arange(start, start + keys.shape[2], device=keys.device)
        column = column % self.keys.shape[2]
        self.keys[:, :, column] = keys.to(self.keys.dtype)
        self.values[:, :, column] = values.to(self.values.dtype)


def new_kv_cache(
    shape: Shape,
    *,
    mask: Predicate,
    device: torch.device,
    dtype: torch.dtype,
    value_dim: int | None = None,
) -> KeysAndValues:
    """Return an empty cache of all tokens, or of those in the window of the mask."""
    made = {"device": device, "dtype": dtype, "value_dim": value_dim}
    if not isinstance(mask, SlidingWindow):
        return LayerCache(shape, **made)
    batch, heads, capacity, width = shape
    return WindowCache((batch, heads, min(capacity, mask.size), width), window=mask.size, **made)


class Cache:
    """The state of every layer, and the positions and padding of the columns of a batch.

    Args:
        layers: one state per layer.
        batch_size: number of rows B.
        capacity: most tokens of a row, padding included.
        device: device of the layers.

    Attributes:
        length: number of tokens that every layer has seen.
        positions: (B, capacity), the position of each column in the text of its row.
        valid: (B, capacity), False where a column is padding; None if no row is padded.
        per_row: whether positions were given explicitly, so that rows may differ.
    """

    def __init__(
        self,
        layers: Sequence[LayerState],
        *,
        batch_size: int,
        capacity: int,
        device: torch.device,
    ) -> None:
        # By default column i holds position i in every row: (capacity) -> (B, capacity).
        columns = torch.arange(capacity, device=device)
        self.layers = layers
        self.length = 0
        self.positions: Int[Tensor, "B capacity"] = columns.repeat(batch_size, 1)
        self.valid: Bool[Tensor, "B capacity"] | None = None
        self.per_row = False

    @property
    def capacity(self) -> int:
        """Number of columns that the cache can describe."""
        return self.positions.shape[1]

    @property
    def nbytes(self) -> int:
        """Size of the states of all layers, in bytes."""
        return sum(layer.nbytes for layer in self.layers)

    def select(self, rows: Int[Tensor, "rows"]) -> None:
        """Keep some rows of the batch, in the given order."""
        for layer in self.layers:
            layer.select(rows)
        self.positions = self.positions[rows]
        self.valid = None if self.valid is None else self.valid[rows]

    def truncated(self, length: int, capacity: int) -> "Cache | None":
        """Return a cache of the first `length` columns with room for `capacity`, in this memory if it fits.

        None if a layer cannot go back so far, or if positions were given explicitly.
        """
        # An interrupted forward pass may have reached some layers only.
        back = [layer.length - length for layer in self.layers]
        if self.per_row or not all(
            count >= 0 and layer.can_rewind(count)
            for layer, count in zip(self.layers, back, strict=True)
        ):
            return None
        for layer, count in zip(self.layers, back, strict=True):
            layer.rewind(count)
            layer.enlarge(capacity)
        # Positions and padding are those of a new cache.
        batch_size, device = self.positions.shape[0], self.positions.device
        cache = Cache(self.layers, batch_size=batch_size, capacity=capacity, device=device)
        cache.length = length
        return cache

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
