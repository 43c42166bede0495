"""What can be said of a command without importing it."""

from typing import NamedTuple


class CommandInfo(NamedTuple):
    """What `llm --help` and the front door know of a command.

    Attributes:
        help: what it does, in a line.
        example: a command to start from.
        reads: tasks whose runs it reads; none for all.
        folders: the key that gathers words which are not overrides: folders.
        is_heavy: whether each point of a sweep (`-m`) gets a process of its own.
    """

    help: str
    example: str
    reads: tuple[str, ...] = ()
    folders: str | None = None
    is_heavy: bool = False
