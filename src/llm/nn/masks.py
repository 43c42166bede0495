"""Attention masks as predicates, which can be combined.

A predicate maps the indices of T queries and of S keys to a boolean (…, T, S), True where the query
may attend to the key. An index is a column of the batch: 0 is the first, padding or not.

    >>> print(draw_mask(causal, 4))
    ■ · · ·
    ■ ■ · ·
    ■ ■ ■ ·
    ■ ■ ■ ■
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Predicate = Callable[[Tensor, Tensor], Tensor]


def causal(queries: Int[Tensor, "T"], keys: Int[Tensor, "S"]) -> Bool[Tensor, "T S"]:
    """Allow keys up to the query's own index."""
    return queries[:, None] >= keys[None, :]


def everything(queries: Int[Tensor, "T"], keys: Int[Tensor, "S"]) -> Bool[Tensor, "T S"]:
    """Allow every key, also later ones, as in an encoder."""
    return torch.ones(len(queries), len(keys), dtype=torch.bool, device=queries.device)


def is_same_function(predicate: Predicate, function: Predicate) -> bool:
    """Return whether a predicate is a function itself, or the partial that a configuration makes of it."""
    return getattr(predicate, "func", predicate) is function


def is_same_mask(one: Predicate | None, other: Predicate | None) -> bool:
    """Return whether two predicates are equal, or were made by one function with equal arguments."""
    return one == other or _definition(one) == _definition(other)


def _definition(predicate: Any) -> object:
    """Return a predicate's code and the arguments that it was made with; the predicate itself if it has no code."""
    function: Any = inspect.unwrap(getattr(predicate, "func", predicate))
    given = getattr(predicate, "args", ()), getattr(predicate, "keywords", {})
    code = getattr(function, "__code__", None)
    if code is None:
        return function, given
    return code, tuple(cell.cell_contents for cell in function.__closure__ or ()), given


@dataclass(frozen=True)
class SlidingWindow:
    """The predicate of `sliding_window`. Kernels and caches read its size, to skip what the mask hides.

    Raises:
        ValueError: the window is empty.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(
                f"size={self.size}: a window has at least one position, the query's own; give 1 or more"
            )

    def __call__(self, queries: Int[Tensor, "T"], keys: Int[Tensor, "S"]) -> Bool[Tensor, "T S"]:
        """Return which keys are at most `size - 1` before the query."""
        # (T, 1) - (1, S) -> (T, S): how far back each key is, negative for later keys.
        distance = queries[:, None] - keys[None, :]
        return (distance >= 0) & (distance < self.size)


def sliding_window(size: int) -> Predicate:
    """Allow the last `size` keys up to and including the query's own (Beltagy et al. 2020).

    >>> print(draw_mask(sliding_window(2), 4))
    ■ · · ·
    ■ ■ · ·
    · ■ ■ ·
    · · ■ ■

    Raises:
        ValueError: the window is empty.
    """
    return SlidingWindow(size)


def sparse_strided(stride: int) -> Predicate:
    """Allow the last `stride` keys, and before them every key that is a multiple of `stride` back.

    Two layers reach every earlier position, and a query attends to about 2√T keys if `stride` is √T (Child et al. 2019,
    "Generating long sequences with sparse Transformers", section 4.3).

    >>> print(draw_mask(sparse_strided(2), 5))
    ■ · · · ·
    ■ ■ · · ·
    ■ ■ ■ · ·
    · ■ ■ ■ ·
    ■ · ■ ■ ■

    Raises:
        ValueError: the stride is not positive.
    """
    _positive("stride", stride)

    def predicate(queries: Int[Tensor, "T"], keys: Int[Tensor, "S"]) -> Bool[Tensor, "T S"]:
        distance = queries[:, None] - keys[None, :]
        return (distance >= 0) & ((distance < stride) | (distance % stride == 0))

    return predicate


def sparse_fixed(stride: int, summary: int = 1) -> Predicate:
    """Allow the query's own block of `stride` keys, and the last `summary` keys of every earlier block.

    The last positions of a block can summarize it for all later ones (Child et al. 2019, section 4.3).

    >>> print(draw_mask(sparse_fixed(2), 6))
    ■ · · · · ·
    ■ ■ · · · ·
    · ■ ■ · · ·
    · ■ ■ ■ · ·
    · ■ · ■ ■ ·
    · ■ · ■ ■ ■

    Raises:
        ValueError: a number is not positive, or the summary is longer than a block.
    """
    _positive("stride", stride)
    if not 1 <= summary <= stride:
        raise ValueError(f"summary={summary}: give 1 to {stride}, the size of a block")

    def predicate(queries: Int[Tensor, "T"], keys: Int[Tensor, "S"]) -> Bool[Tensor, "T S"]:
        query, key = queries[:, None], keys[None, :]
        is_own_block = query // stride == key // stride
        return (query >= key) & (is_own_block | (key % stride >= stride - summary))

    return predicate


def window_and_first(size: int, first: int) -> Predicate:
    """Allow the last `size` keys, and the `first` keys of the sequence from everywhere.

    Global tokens collect what a window has left (Beltagy et al. 2020). Trained models put much weight on the first
    tokens whatever they are, so a window without them fails once they are gone (Xiao et al. 2023, StreamingLLM).

    >>> print(draw_mask(window_and_first(2, 1), 5))
    ■ · · · ·
    ■ ■ · · ·
    ■ ■ ■ · ·
    ■ · ■ ■ ·
    ■ · · ■ ■

    Raises:
        ValueError: a number is not positive.
    """
    _positive("size", size)
    _positive("first", first)

    def predicate(queries: Int[Tensor, "T"], keys: Int[Tensor, "S"]) -> Bool[Tensor, "T S"]:
        distance = queries[:, None] - keys[None, :]
        return (distance >= 0) & ((distance < size) | (keys[None, :] < first))

    return predicate


def prefix(length: int | Int[Tensor, "B"]) -> Predicate:
    """Allow all of a prefix from everywhere, and after it keys up to the query's own index.

    A prefix language model reads its prompt in both directions (Raffel et al. 2020, T5, section 3.2.1). Its prompt must
    be known in full: a token appended to it would change the states of the others.

    >>> print(draw_mask(prefix(3), 5))
    ■ ■ ■ · ·
    ■ ■ ■ · ·
    ■ ■ ■ · ·
    ■ ■ ■ ■ ·
    ■ ■ ■ ■ ■

    Args:
        length: tokens in the prefix, of every row or of each.
    """

    def predicate(queries: Int[Tensor, "T"], keys: Int[Tensor, "S"]) -> Bool[Tensor, "*rows T S"]:
        # (S) < () or (B, 1, 1) -> (S) or (B, 1, S)
        is_prefix = keys < (length[:, None, None] if isinstance(length, Tensor) else length)
        return causal(queries, keys) | is_prefix

    return predicate


def same_document(document_ids: Int[Tensor, "B S"]) -> Predicate:
    """Allow attention within one document, for packed rows.

    >>> print(draw_mask(both(causal, same_document(torch.tensor([[7, 7, 8, 8]]))), 4))
    ■ · · ·
    ■ ■ · ·
    · · ■ ·
    · · ■ ■

    Args:
        document_ids: document of each index; only equality matters.
    """

    def predicate(queries: Int[Tensor, "T"], keys: Int[Tensor, "S"]) -> Bool[Tensor, "B T S"]:
        # (B, T, 1) == (B, 1, S) -> (B, T, S)
        return document_ids[:, queries, None] == document_ids[:, None, keys]

    return predicate


def not_padding(real: Bool[Tensor, "B S"]) -> Predicate:
    """Allow keys that are real tokens.

    Padding may also attend to itself: a softmax over no key is NaN, and 0 · NaN would spread it to all
    other positions.

    >>> print(draw_mask(both(causal, not_padding(torch.tensor([[False, True, True]]))), 3))
    ■ · ·
    · ■ ·
    · ■ ■

    Args:
        real: True for real tokens.
    """

    def predicate(queries: Int[Tensor, "T"], keys: Int[Tensor, "S"]) -> Bool[Tensor, "B T S"]:
        return real[:, None, keys] | (queries[:, None] == keys[None, :])

    return predicate


@dataclass(frozen=True, eq=False)
class RowLimits:
    """Padding, documents or both of T tokens, as a kernel takes them that makes its masks in blocks.

    Attributes:
        real: True for real tokens; None means all.
        document_ids: document of each token; None means one.
    """

    real: Bool[Tensor, "B T"] | None = None
    document_ids: Int[Tensor, "B T"] | None = None

    @property
    def predicates(self) -> list[Predicate]:
        """The limits as predicates; none if nothing is limited."""
        limits = []
        if self.real is not None:
            limits.append(not_padding(self.real))
        if self.document_ids is not None:
            limits.append(same_document(self.document_ids))
        return limits

    def dense(self, query: Float[Tensor, "B H T D"]) -> Bool[Tensor, "B 1 T T"]:
        """Return the mask for the queries of all tokens."""
        columns = torch.arange(query.shape[2], device=query.device)
        return both(*self.predicates)(columns, columns).unsqueeze(1)


def both(*predicates: Predicate) -> Predicate:
    """Allow what all of the predicates allow."""

    def predicate(queries: Tensor, keys: Tensor) -> Tensor:
        # Shapes broadcast: (T, S) & (B, T, S) -> (B, T, S).
        return reduce(torch.logical_and, [each(queries, keys) for each in predicates])

    return predicate


def visible_keys(predicate: Predicate, length: int) -> int:
    """Return the number of keys that the last of `length` queries may attend to."""
    keys = torch.arange(length, device="cpu")
    return int(predicate(keys[-1:], keys).sum())


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value}: give 1 or more")


def as_bias(
    allowed: Bool[Tensor, "*rows #H T S"], bias: Float[Tensor, "*other H T S"]
) -> Float[Tensor, "*both H T S"]:
    """Return one floating mask: `bias` where attention is allowed, -inf elsewhere."""
    # (B, 1, T, S) and (H, T, S) broadcast to (B, H, T, S).
    return bias.masked_fill(~allowed, -torch.inf)


def draw_mask(predicate: Predicate, num_queries: int, *, num_keys: int | None = None) -> str:
    """Return the mask of the first row of a batch as text, a line per query: ■ allowed, · not."""
    num_keys = num_keys or num_queries
    # The queries are the last columns, as after cached keys.
    queries = torch.arange(num_keys - num_queries, num_keys)
    allowed = predicate(queries, torch.arange(num_keys))
    rows = allowed.reshape(-1, num_queries, num_keys)[0].tolist()
    return "\n".join(" ".join("■" if sees else "·" for sees in row) for row in rows)
