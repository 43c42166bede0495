"""Printed text: unchanged for any content and any terminal."""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.panel import Panel
from rich.table import Table

import llm.__main__ as command
from llm.terminal.console import new_console, printable

SOURCE = Path(__file__).parents[2] / "src/llm"
# Text that rich reads as styles, ends of styles and emoji.
TEXTS = ["[red]x[/red]", "br[/x].txt", "[a,b]", ":smile:", "adapter.targets=[query,value]", "\\[x]"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_console_prints_text_unchanged(text):
    rows = Table(text, title=text)
    rows.add_row(text)
    out = io.StringIO()
    console = new_console(file=out, width=200)
    console.print(text)
    console.print(rows)
    assert out.getvalue().count(text) == 4


CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"]


def test_no_control_character_reaches_a_terminal():
    text = "".join(CONTROLS) + "\x1b]0;title\x07\ud800"
    out = io.StringIO()
    console = new_console(file=out, width=200)
    console.print(text, Panel(text))
    written = out.getvalue()
    assert not set(written) & {*CONTROLS, "\ud800"}
    assert "␛]0;title" in written
    assert printable("a\tb\nä 📚 [x]") == "a\tb\nä 📚 [x]"


def called(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [(ast.unparse(call.func).rpartition(".")[2], call) for call in calls]


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: file.stem)
def test_no_module_prints_with_a_console_that_reads_markup(file):
    calls = called(ast.parse(file.read_text("utf-8")))
    names = [name for name, _ in calls]
    assert "from_markup" not in names
    assert "Console" not in names
    for name, call in calls:
        words = {word.arg: word.value for word in call.keywords}
        if name == "TextColumn":
            assert ast.unparse(words["markup"]) == "False"
        # Panel always reads a string title as markup.
        if name == Panel.__name__ and "title" in words:
            assert ast.unparse(words["title"]).startswith(("f'step {step}'", "Text"))


def test_a_terminal_in_ascii_gets_question_marks(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    monkeypatch.setattr(sys, "argv", ["llm", "--help"])
    command.main()
    assert b"llm COMMAND [key=value ?]" in raw.getvalue()


def test_another_locale_changes_only_the_encoding_of_the_output():
    """Words of the command line are read as typed, and output has the encoding of the locale."""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    line = [sys.executable, "-m", "llm", "Käse"]
    done = subprocess.run(line, capture_output=True, env=os.environ | locale)
    assert done.stderr.startswith(rb"llm K\xe4se: no such command")
    assert done.returncode == 2


@pytest.mark.parametrize("word", ["prompt=a\udcff", "name=\udcff"])
def test_a_word_that_is_not_utf8_is_refused(word, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["llm", "generate", word])
    with pytest.raises(SystemExit) as error:
        command.main()
    shown = word.replace("\udcff", "\\xff")
    assert error.value.code == 2
    assert capsys.readouterr().err == (
        f"{shown}: contains bytes that are not UTF-8 text; write it in UTF-8\n"
    )


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["train", "--cfg", "job"]])
def test_closed_pipe_ends_the_command_quietly(words):
    """As in `llm --help | head -0`."""
    line = [sys.executable, "-m", "llm", *words]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 0
