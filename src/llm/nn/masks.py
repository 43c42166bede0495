"""Who may see whom: predicates of a query's and a key's place in the sequence, that compose.

A predicate takes the places of T queries and of S keys and answers with a boolean (…, T, S), True
where the query may see the key. Places are columns of the batch: 0 is its first, padding or not.

    >>> print(draw_mask(causal, 4))
    ■ · · ·
    ■ ■ · ·
    ■ ■ ■ ·
    ■ ■ ■ ■
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Predicate = Callable[[Tensor, Tensor], Tensor]


def causal(queries: Int[Tensor, "T"], keys: Int[Tensor, "S"]) -> Bool[Tensor, "T S"]:
    """No key after the query."""
    return queries[:, None] >= keys[None, :]


def sliding_window(size: int) -> Predicate:
    """Of the keys up to the query, the last `size`, its own included (Beltagy et al. 2020).

    >>> print(draw_mask(sliding_window(2), 4))
    ■ · · ·
    ■ ■ · ·
    · ■ ■ ·
    · · ■ ■

    Raises:
        ValueError: the window is empty.
    """
    if size < 1:
        raise ValueError(f"size={size}: a window holds at least the query's own place, 1")

    def predicate(queries: Int[Tensor, "T"], keys: Int[Tensor, "S"]) -> Bool[Tensor, "T S"]:
        distance = queries[:, None] - keys[None, :]
        return (distance >= 0) & (distance < size)

    return predicate


def same_document(document_ids: Int[Tensor, "B S"]) -> Predicate:
    """Keys of the query's own document, for texts packed into one row.

    >>> print(draw_mask(both(causal, same_document(torch.tensor([[7, 7, 8, 8]]))), 4))
    ■ · · ·
    ■ ■ · ·
    · · ■ ·
    · · ■ ■

    Args:
        document_ids: which document each place belongs to, any numbers.
    """

    def predicate(queries: Int[Tensor, "T"], keys: Int[Tensor, "S"]) -> Bool[Tensor, "B T S"]:
        return document_ids[:, queries, None] == document_ids[:, None, keys]

    return predicate


def not_padding(real: Bool[Tensor, "B S"]) -> Predicate:
    """Keys that are real tokens.

    A padding place sees itself as well: a query that sees nothing has no softmax, and its NaN would
    spread.

    >>> print(draw_mask(both(causal, not_padding(torch.tensor([[False, True, True]]))), 3))
    ■ · ·
    · ■ ·
    · ■ ■

    Args:
        real: True where a place holds a token of the text.
    """

    def predicate(queries: Int[Tensor, "T"], keys: Int[Tensor, "S"]) -> Bool[Tensor, "B T S"]:
        return real[:, None, keys] | (queries[:, None] == keys[None, :])

    return predicate


def both(*predicates: Predicate) -> Predicate:
    """What every one of the predicates allows."""

    def predicate(queries: Tensor, keys: Tensor) -> Tensor:
        allowed = predicates[0](queries, keys)
        for other in predicates[1:]:
            allowed = allowed & other(queries, keys)
        return allowed

    return predicate


def as_bias(
    allowed: Bool[Tensor, "*rows #H T S"], bias: Float[Tensor, "*other H T S"]
) -> Float[Tensor, "*both H T S"]:
    """One floating mask that says both: `bias` where a query may see, -inf where not."""
    return bias.masked_fill(~allowed, -torch.inf)


def draw_mask(predicate: Predicate, num_queries: int, num_keys: int | None = None) -> str:
    """The mask as text, a row a query (of the batch's first row): ■ sees, · does not."""
    num_keys = num_keys or num_queries
    queries = torch.arange(num_keys - num_queries, num_keys)
    allowed = predicate(queries, torch.arange(num_keys))
    rows = allowed.reshape(-1, num_queries, num_keys)[0].tolist()
    return "\n".join(" ".join("■" if sees else "·" for sees in row) for row in rows)
