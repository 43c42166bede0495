"""Tables on standard output: as wide as a terminal, and where there is none (a log, a pipe) as wide as they are."""

import os

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from llm.terminal.console import new_console

ENDLESS = 10_000  # columns


def open_console() -> Console:
    """Standard output; nobody is there to widen a log, so it leaves out nothing, unless COLUMNS says how wide."""
    console = new_console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = ENDLESS
    return console


def print_tables(*parts: RenderableType) -> None:
    """Print tables and lines."""
    console = open_console()
    for part in parts:
        console.print(part, soft_wrap=not console.is_terminal and not isinstance(part, Table))


def new_table(*names: str) -> Table:
    """An empty table: a column of names, which may break, and columns of figures."""
    rows = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    rows.add_column(names[0], overflow="fold")
    for name in names[1:]:
        rows.add_column(name, justify="right", no_wrap=True)
    return rows


def note_line(text: str) -> Text:
    """A line that says what a table means."""
    return Text(f"· {text}", style="dim")
