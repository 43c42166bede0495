"""Printed commands: a shell reads the intended words."""

import io
import sys
from pathlib import Path

import pytest
from pasted_lines import pasted

from llm.terminal import shell

WORDS = [
    "plain=1",
    "data/preprocessing=[lowercase]",
    "adapter.targets=[query,value]",
    "data.path=br[/x].txt",
    "name='a b'",
    'it\'s "$x" `date` \\ !',
    "",
    "two\nlines\tand \x1b[31mred",
    "ünï 日本語",
    "\udcff",
]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_quoted_words_are_read_back_by_a_shell(encoding, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        line = shell.command_line("llm", *WORDS)
    line.encode(encoding)
    assert "\x1b" not in line
    assert pasted(line) == WORDS


def test_program_name_can_be_called_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "env").mkdir()
    for name in ("python", "llm"):
        (tmp_path / "env" / name).write_text("#!/bin/sh\n")
        (tmp_path / "env" / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env/python"))
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path)
    assert shell.program() == "env/llm"
    monkeypatch.chdir("/usr")
    assert shell.program() == str(tmp_path / "env/llm")
    monkeypatch.setenv("PATH", str(tmp_path / "env"))
    assert shell.program() == "llm"
    (tmp_path / "env/llm").unlink()
    assert shell.program() == "llm", "not installed: the plain name is used"


def test_a_command_line_includes_the_path_of_user_modules(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "my modules")
    assert shell.command_line("llm", "train") == "llm train"
    assert (
        shell.command_line("llm", "train", modules=["mine"]) == "PYTHONPATH='my modules' llm train"
    )
    assert Path(shell.program()).name == "llm"
