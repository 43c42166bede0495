"""Printing on the first rank only."""

from llm import distributed
from llm.terminal.console import new_console

CONSOLE = new_console()


def say(text: str) -> None:
    """Print a text on the first rank."""
    if distributed.is_first():
        CONSOLE.print(text, soft_wrap=True)
