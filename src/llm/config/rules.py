"""The rules that hold for every tree, across its sections.

A command has more of its own (`rules`). A rule takes the tree as plain data, every reference written out, and
yields lines like those of the check.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm.config.texts import PATHS

Rule = Callable[[Mapping[str, Any]], Iterator[str]]

LONGEST_PART = 255  # bytes of one part of a path


def paths_can_be_files(config: Mapping[str, Any]) -> Iterator[str]:
    """No part of a path is longer than the name of a file can be."""
    for key in sorted(PATHS):
        value: Any = config
        for word in key.split("."):
            value = value.get(word) if isinstance(value, Mapping) else None
        for path in value if isinstance(value, list) else [value]:
            parts = path.split("/") if isinstance(path, str) else ()
            longest = max((len(part.encode("utf-8", "replace")) for part in parts), default=0)
            if longest > LONGEST_PART:
                yield f"{key}: {path[:20]}… cannot be a file's; no part of it may have more than {LONGEST_PART} bytes"
            elif isinstance(path, str) and "\0" in path:
                yield f"{key}: {path!r} cannot be a file's; leave out the NUL"


RULES: tuple[Rule, ...] = (paths_can_be_files,)
