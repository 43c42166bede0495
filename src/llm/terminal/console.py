"""Where people read what a command prints: text as it stands, in whatever encoding their terminal has.

Values (overrides, paths, names, texts of a model) contain brackets and colons, which rich would read as
styles and emoji. So no console of this package reads markup: a style is given beside the text.

They may also contain control characters, by which a terminal moves its cursor, changes its title or answers
as if the user had typed. So all that is printed goes through `printable`, of a console by itself.
"""

import codecs
import os
import sys
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Control characters by their pictures, where there are some; the line feed and the tab stay.
CONTROLS: dict[int, int] = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD),
}


def printable(text: str) -> str:
    """Return a text without what a terminal would obey, each such character as a sign that can be seen."""
    return text.translate(CONTROLS)


class Printable:
    """A text stream that writes to another one what `printable` leaves of a text.

    Args:
        stream: the other one.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text."""
        return self.stream.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def new_console(*, stderr: bool = False, **options: Any) -> "Console":
    """Return a console on standard output, or standard error, that prints every text as it stands."""
    from rich.console import Console  # takes a tenth of a second, and help does not need it
    from rich.segment import Segment

    class Plain(Console):
        def render(self, *what: Any, **how: Any) -> Iterable[Segment]:
            for segment in super().render(*what, **how):
                yield (
                    segment if segment.control else Segment(printable(segment.text), segment.style)
                )

        def on_broken_pipe(self) -> None:
            stop_printing()
            raise  # the error that is being handled; rich would exit with a status of its own

    settings: dict[str, Any] = {"highlight": False} | options
    return Plain(stderr=stderr, markup=False, emoji=False, **settings)


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


def warn_in_one_line() -> None:
    """Print our warnings as sentences, without the place in the code from which they come."""
    usual = warnings.formatwarning

    def sentence(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if category is not UserWarning:
            return usual(message, category, filename, lineno, line)
        return f"warning: {printable(str(message))}\n"

    warnings.formatwarning = sentence


def stop_printing() -> None:
    """Send what is still printed nowhere, because nobody reads it any more (`llm … | head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
