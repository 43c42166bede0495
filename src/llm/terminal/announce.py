"""Output of a run, printed once however many ranks it has."""

from llm import distributed
from llm.terminal.console import new_console

CONSOLE = new_console()


def say(text: str) -> None:
    """Print on the first rank only."""
    if distributed.is_first():
        CONSOLE.print(text, soft_wrap=True)
