"""Facts about a command that are known without importing it."""

from typing import NamedTuple


class CommandInfo(NamedTuple):
    """Facts about a command, for `llm --help` and for starting it.

    Attributes:
        help: what it does, in one line.
        example: a command to start with.
        reads: tasks whose runs it reads; empty for all.
        folders: the key that collects the folders on the command line.
        is_heavy: whether each point of a sweep (`-m`) gets its own process.
    """

    help: str
    example: str
    reads: tuple[str, ...] = ()
    folders: str | None = None
    is_heavy: bool = False
