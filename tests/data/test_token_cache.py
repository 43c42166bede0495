import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from llm.data.token_cache import (
    METADATA,
    _machine,
    cached,
    is_whole,
    read_metadata,
    write_metadata,
)


def writer(content: bytes = b"tokens", calls: list[int] | None = None):
    def write(folder: Path) -> None:
        if calls is not None:
            calls.append(1)
        (folder / "train.bin").write_bytes(content)
        write_metadata(folder, {"tokens": len(content)})

    return write


def test_it_is_written_once(tmp_path: Path):
    calls: list[int] = []
    for _ in range(3):
        folder = cached(tmp_path / "root" / "key", writer(calls=calls))
    assert len(calls) == 1
    assert read_metadata(folder) == {"tokens": 6, "files": {"train.bin": 6}}
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["key"], "nothing is left over"


def test_what_was_not_finished_is_never_used(tmp_path: Path):
    def interrupted(folder: Path) -> None:
        (folder / "train.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "key", interrupted)
    assert list(tmp_path.iterdir()) == []
    assert (cached(tmp_path / "key", writer()) / "train.bin").read_bytes() == b"tokens"


@pytest.mark.parametrize("damage", ["truncate", "remove", "garble", "unfinished"])
def test_what_was_damaged_is_written_again(tmp_path: Path, damage: str):
    folder = cached(tmp_path / "key", writer())
    if damage == "truncate":
        (folder / "train.bin").write_bytes(b"tok")
    elif damage == "remove":
        (folder / "train.bin").unlink()
    elif damage == "garble":
        (folder / METADATA).write_text("{")
    else:
        (folder / METADATA).unlink()
    assert not is_whole(folder)
    assert (cached(folder, writer()) / "train.bin").read_bytes() == b"tokens"
    assert is_whole(folder)


def test_of_two_at_once_one_wins_and_both_read_the_whole(tmp_path: Path):
    both_are_writing = threading.Barrier(2, timeout=10)
    found = []

    def write(folder: Path) -> None:
        both_are_writing.wait()
        writer(b"x" * 100_000)(folder)

    def start() -> None:
        found.append((cached(tmp_path / "key", write) / "train.bin").read_bytes())

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"x" * 100_000] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_full_disk_is_not_hidden(tmp_path: Path):
    def write(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        cached(tmp_path / "key", write)
    assert list(tmp_path.iterdir()) == []


def test_metadata_is_json_for_people(tmp_path: Path):
    write_metadata(tmp_path, {"source": "Größe"})
    assert json.loads((tmp_path / METADATA).read_text(encoding="utf-8"))["source"] == "Größe"


def test_what_killed_processes_left_is_swept_and_what_others_fill_is_not(tmp_path: Path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    unique = "0123456789abcdef" * 2
    left = [f"a.{_machine()}.{ended.pid}.{unique}", f"b.elsewhere.1.{unique}", f"c.{unique}"]
    kept = [f"a.{_machine()}.{os.getppid()}.{unique}", f"b.elsewhere.2.{unique}", f"d.{unique}"]
    for name in (*left, *kept, "whole", "e.notes"):
        (tmp_path / name).mkdir()
    for name in (*left[1:], "whole", "e.notes"):
        os.utime(tmp_path / name, (0, 0))
    cached(tmp_path / "key", writer())
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "whole", "e.notes", "key"}
