"""Consoles that print text literally and safely, in every encoding.

Values (overrides, paths, names, generated texts) may contain brackets and colons, which rich would read as styles and
emoji. So no console of this package parses markup.

Values may also contain control characters, with which a terminal moves its cursor, changes its title or sends input
as if the user had typed it. So all printed text passes `printable`, in consoles automatically.
"""

import codecs
import os
import sys
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Control characters and their visible symbols; the line feed and the tab are kept.
CONTROLS: dict[int, int] = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD),
}


def printable(text: str) -> str:
    """Return a text with each control character replaced by a visible symbol."""
    return text.translate(CONTROLS)


class Printable:
    """A text stream that writes `printable` text to another stream."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text."""
        return self.stream.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def new_console(*, stderr: bool = False, **options: Any) -> "Console":
    """Return a console on standard output or standard error that prints text literally."""
    # rich takes 0.1 s to import; `llm --help` does not need it.
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        def render(self, *what: Any, **how: Any) -> Iterable[Segment]:
            for segment in super().render(*what, **how):
                yield (
                    segment if segment.control else Segment(printable(segment.text), segment.style)
                )

        def on_broken_pipe(self) -> None:
            stop_printing()
            raise  # the current error; rich would exit with another status

    settings: dict[str, Any] = {"highlight": False} | options
    return Plain(stderr=stderr, markup=False, emoji=False, **settings)


def use_utf8() -> None:
    """Restart this process in Python's UTF-8 mode if the locale has another encoding.

    Then file names and command lines are UTF-8, also in child processes. Printed text keeps the terminal's encoding.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    streams = f"{sys.stdout.encoding}:replace"
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", streams)
    words = [word.encode("utf-8", "surrogateescape") for word in sys.orig_argv[1:]]
    os.execv(sys.executable, [sys.executable.encode(), *words])


def replace_unprintable() -> None:
    """Print characters that a stream cannot encode as question marks.

    Otherwise a tick mark or a sample in another script would end training with a UnicodeEncodeError.
    """
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    encoding = getattr(sys.stdin, "encoding", None) or "utf-8"
    if codecs.lookup(encoding).name == "ascii":  # UTF-8 is a superset, and most input is UTF-8
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # pyright: ignore


def shorten_warnings() -> None:
    """Print our warnings in one line, without the position in the code."""
    usual = warnings.formatwarning

    def format_short(message: Warning | str, category: type[Warning], *at: Any, **line: Any) -> str:
        if category is UserWarning:
            return f"warning: {printable(str(message))}\n"
        return usual(message, category, *at, **line)

    warnings.formatwarning = format_short  # pyright: ignore[reportAttributeAccessIssue]


def stop_printing() -> None:
    """Discard all further output, because the reader of the pipe has ended (`llm … | head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
