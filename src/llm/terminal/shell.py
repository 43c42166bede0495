"""Printed commands that can be pasted into a shell unchanged."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path


def command_line(*words: str, modules: Iterable[str] = ()) -> str:
    """Return a command as a line for a shell.

    Args:
        words: the program and its arguments.
        modules: the user's packages that the command imports; if there are any, the line sets PYTHONPATH.
    """
    path = os.environ.get("PYTHONPATH")
    variables = [f"PYTHONPATH={quoted_word(path)}"] if path and list(modules) else []
    return " ".join([*variables, *map(quoted_word, words)])


def program(name: str = "llm") -> str:
    """Return the name of a program of this environment, or its path if it is not on PATH."""
    own = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not own.is_file() or (found is not None and Path(found).samefile(own)):
        return name
    here = Path.cwd()
    return str(own.relative_to(here) if own.is_relative_to(here) else own)


def quoted_word(word: str) -> str:
    """Return a word quoted for a shell, without control characters and characters that the terminal cannot print."""
    encoding = sys.stdout.encoding or "utf-8"
    if word.isprintable() and word.encode(encoding, "replace").decode(encoding) == word:
        return shlex.quote(word)
    return f"$'{''.join(map(_escaped, word.encode('utf-8', 'surrogateescape')))}'"


def _escaped(byte: int) -> str:
    is_plain = 32 <= byte < 127 and byte not in b"'\\"
    return chr(byte) if is_plain else f"\\x{byte:02x}"
