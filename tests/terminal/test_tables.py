"""Tables on standard output."""

import pytest
from rich.console import Console

from llm.terminal import tables

NAMES = ("point", *(f"a column of a long name {number}" for number in range(9)))


@pytest.fixture
def wide():
    table = tables.new_table(*NAMES)
    table.add_row("x" * 60, *map(str, range(9)))
    return table


def test_a_log_holds_every_row_in_one_line(wide, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    tables.print_tables(wide, tables.note_line("n" * 300))
    lines = capsys.readouterr().out.splitlines()
    assert all(name in lines[1] for name in NAMES)
    assert lines[3].split() == ["x" * 60, *map(str, range(9))]
    assert lines[-1] == f"· {'n' * 300}"
    assert not any(line.endswith("  ") for line in lines[-1:])


def test_the_variable_columns_sets_the_width_of_a_log(wide, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    tables.print_tables(wide)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 70


def test_table_is_as_wide_as_the_terminal(monkeypatch):
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", "91")
    assert tables.open_console().width == 91
