"""Plain data: nested dictionaries and lists, and the full keys of their items."""

from collections.abc import Iterator
from typing import Any


def items_of(plain: Any, key: str = "") -> Iterator[tuple[Any, str, Any]]:
    """Yield the items of a dictionary or a list, as name, full key and value; nothing for other data."""
    if isinstance(plain, dict):
        for name, value in plain.items():
            yield name, f"{key}.{name}" if key else str(name), value
    elif isinstance(plain, list):
        for index, value in enumerate(plain):
            yield index, f"{key}[{index}]", value


def nested_items(plain: Any, key: str = "") -> Iterator[tuple[Any, str, Any]]:
    """Yield the items of a dictionary or a list at all depths, each before the items in it."""
    for name, full, value in items_of(plain, key):
        yield name, full, value
        yield from nested_items(value, full)


def value_at(plain: Any, key: str) -> Any:
    """Return the value at a dotted key; None if there is none."""
    for word in key.split("."):
        plain = plain.get(word) if isinstance(plain, dict) else None
    return plain
