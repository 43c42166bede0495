"""Rules for every tree that span several sections. A command has further rules (`Command.rules`).

A rule takes the tree as plain data with all references resolved, and yields one line for each problem.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm.config.plain import value_at
from llm.config.texts import PATHS

Rule = Callable[[Mapping[str, Any]], Iterator[str]]

LONGEST_COMPONENT = 255  # bytes


def paths_can_be_files(config: Mapping[str, Any]) -> Iterator[str]:
    """Require that paths contain no NUL and no component longer than 255 bytes."""
    for key in sorted(PATHS):
        value = value_at(config, key)
        for path in value if isinstance(value, list) else [value]:
            words = path.split("/") if isinstance(path, str) else ()
            longest = max((len(each.encode("utf-8", "replace")) for each in words), default=0)
            if longest > LONGEST_COMPONENT:
                yield f"{key}: {path[:20]}… is too long for a path; use at most {LONGEST_COMPONENT} bytes between two /"
            elif isinstance(path, str) and "\0" in path:
                yield f"{key}: {path!r} is not a path; leave out the NUL"


RULES: tuple[Rule, ...] = (paths_can_be_files,)
