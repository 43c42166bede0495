"""Where a conversation's lines come from and go to: files and pipes, or a person at a terminal.

Answers go to standard output and all else to standard error, so that a pipe holds answers alone.
"""

import contextlib
import sys
from importlib import import_module
from typing import TextIO

from llm.terminal.console import printable


class StandardStreams:
    """Standard input and output with nobody there: no prompts, and nobody to be asked."""

    def __init__(self) -> None:
        for stream in (sys.stdin, sys.stdout):  # a byte that is no text must not end a conversation
            if reconfigure := getattr(stream, "reconfigure", None):
                reconfigure(errors="replace")

    def read(self) -> str:
        """The next line.

        Raises:
            EOFError: there is none.
        """
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    def write(self, text: str) -> None:
        """Show a piece of an answer at once."""
        _put(text, sys.stdout)

    def note(self, text: str) -> None:
        """Show a line that is no part of an answer."""
        _put(f"{text}\n", sys.stderr)

    def show_hint(self, text: str) -> None:
        """Show a line that helps a person, if there is one."""

    def confirm(self, question: str) -> bool:
        """Whether somebody says yes."""
        return False


class Terminal(StandardStreams):
    """A person, whose lines can be edited and called back where Python has readline."""

    def __init__(self) -> None:
        super().__init__()
        with contextlib.suppress(ImportError):
            readline = import_module("readline")  # from now on `input` uses it
            # What is pasted is one message, however many lines it has. Python turns this off by itself.
            readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self) -> str:
        """What the person enters: a line, or several that were pasted; raises EOFError at Ctrl-D."""
        return input("> ")

    def show_hint(self, text: str) -> None:
        """Show it."""
        self.note(text)

    def confirm(self, question: str) -> bool:
        """Whether the person says yes."""
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def terminal() -> StandardStreams:
    """What standard input and output are connected to."""
    return Terminal() if sys.stdin.isatty() and sys.stdout.isatty() else StandardStreams()


def _put(text: str, stream: TextIO) -> None:
    stream.write(printable(text))
    stream.flush()
