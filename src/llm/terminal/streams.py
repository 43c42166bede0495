"""Input and output of a chat: files and pipes, or a person at a terminal.

Responses are written to standard output and all else to standard error, so that a pipe contains only responses.
"""

import contextlib
import sys
from importlib import import_module
from typing import TextIO

from llm.terminal.console import printable


class StandardStreams:
    """Standard input and output without a person: nothing is asked, and no input is marked with `>`."""

    def __init__(self) -> None:
        for stream in (sys.stdin, sys.stdout):  # an invalid byte must not end a conversation
            if reconfigure := getattr(stream, "reconfigure", None):
                reconfigure(errors="replace")

    def read(self) -> str:
        """Read a line; at the end of the input, raise EOFError."""
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    def write(self, text: str) -> None:
        """Write a piece of a response."""
        write(text)

    def note(self, text: str) -> None:
        """Write a line that is not part of a response."""
        write(f"{text}\n", sys.stderr)

    def show_hint(self, text: str) -> None:
        """Write a hint, if there is a person."""

    def confirm(self, question: str) -> bool:
        """Return whether a person confirms a question."""
        return False


class Terminal(StandardStreams):
    """A person at a terminal. Lines can be edited and recalled if Python has readline."""

    def __init__(self) -> None:
        super().__init__()
        with contextlib.suppress(ImportError):
            readline = import_module("readline")  # once imported, `input` uses it
            # A pasted text of several lines is one message. Python's default is off.
            readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self) -> str:
        """Read a line, or several pasted ones; Ctrl-D raises EOFError."""
        return input("> ")

    def show_hint(self, text: str) -> None:
        """Write a hint."""
        self.note(text)

    def confirm(self, question: str) -> bool:
        """Ask a question and return whether the answer is yes."""
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def terminal() -> StandardStreams:
    """Return a terminal if standard input and output are one, otherwise plain streams."""
    return Terminal() if sys.stdin.isatty() and sys.stdout.isatty() else StandardStreams()


def write(text: str, stream: TextIO | None = None) -> None:
    """Write a text immediately, by default to standard output."""
    print(printable(text), end="", file=stream, flush=True)
