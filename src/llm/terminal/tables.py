"""Tables on standard output: as wide as the terminal; in a log or a pipe, as wide as their content."""

import os

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from llm.terminal.console import new_console

ENDLESS = 10_000  # columns


def open_console() -> Console:
    """Return a console on standard output, with unlimited width if it is not a terminal and COLUMNS is not set."""
    console = new_console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = ENDLESS
    return console


def print_tables(*items: RenderableType) -> None:
    """Print tables and lines."""
    console = open_console()
    for item in items:
        console.print(item, soft_wrap=not console.is_terminal and not isinstance(item, Table))


def new_table(*names: str) -> Table:
    """Return an empty table: a column of names, which may wrap, and columns of numbers."""
    rows = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    rows.add_column(names[0], overflow="fold")
    for name in names[1:]:
        rows.add_column(name, justify="right", no_wrap=True)
    return rows


def note_line(text: str) -> Text:
    """Return a line for a note below a table."""
    return Text(f"· {text}", style="dim")
