"""Where people read what a command prints: text as it stands, in whatever encoding their terminal has.

Values (overrides, paths, names, texts of a model) contain brackets and colons, which rich would read as
styles and emoji. So no console of this package reads markup: a style is given beside the text.
"""

import codecs
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def new_console(stderr: bool = False, **options: Any) -> "Console":
    """Return a console on standard output, or standard error, that prints every text as it stands."""
    from rich.console import Console  # takes a tenth of a second, and help does not need it

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            stop_printing()
            raise  # the error that is being handled; rich would exit with a status of its own

    return Plain(stderr=stderr, markup=False, emoji=False, **({"highlight": False} | options))


def use_utf8() -> None:
    """Begin this process again in Python's UTF-8 mode if the locale has another encoding.

    Names of files and the words of the command line are UTF-8 then, as on the rest of the machine, and so are
    they for the processes that this one starts. What is printed keeps the encoding of the terminal.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    streams = f"{sys.stdout.encoding}:replace"
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", streams)
    words = [word.encode("utf-8", "surrogateescape") for word in sys.orig_argv[1:]]
    os.execv(sys.executable, [sys.executable.encode(), *words])


def replace_what_cannot_be_printed() -> None:
    """Let characters that a stream's encoding does not have come out as question marks.

    Otherwise a tick mark, or a sample in another script, ends a training with a UnicodeEncodeError.
    """
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    encoding = getattr(sys.stdin, "encoding", None) or "utf-8"
    if codecs.lookup(encoding).name == "ascii":  # of which UTF-8 is the superset that people send
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # pyright: ignore


def stop_printing() -> None:
    """Send what is still printed nowhere, because nobody reads it any more (`llm … | head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
