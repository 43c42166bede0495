import hashlib
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from llm.data.corpora.token_cache import (
    MACHINE,
    METADATA,
    damage,
    ensure_written,
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
        folder = ensure_written(tmp_path / "root" / "key", writer(calls=calls))
    assert len(calls) == 1
    metadata = json.loads((folder / METADATA).read_text())
    assert metadata["tokens"] == 6
    assert metadata["files"] == {
        "train.bin": {"bytes": 6, "sha256": hashlib.sha256(b"tokens").hexdigest()}
    }
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["key"], "nothing is left over"


def test_what_was_not_finished_is_never_used(tmp_path: Path):
    def interrupted(folder: Path) -> None:
        (folder / "train.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_written(tmp_path / "key", interrupted)
    assert list(tmp_path.iterdir()) == []
    assert (ensure_written(tmp_path / "key", writer()) / "train.bin").read_bytes() == b"tokens"


def flip(file: Path) -> None:
    """Change one bit, and restore the file's time."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: (folder / "train.bin").write_bytes(b"tok"), "train.bin has 3 bytes, not 6"),
        (lambda folder: (folder / "train.bin").unlink(), "train.bin is missing"),
        (lambda folder: flip(folder / "train.bin"), "train.bin is not what was written"),
        (lambda folder: (folder / METADATA).write_text("{"), "metadata.json is missing or cannot"),
        (lambda folder: (folder / METADATA).write_text("[]"), "metadata.json is missing or cannot"),
        (lambda folder: (folder / METADATA).unlink(), "metadata.json is missing or cannot"),
        (
            lambda folder: (folder / METADATA).write_text(
                (folder / METADATA).read_text().replace('"tokens": 6', '"tokens": 7')
            ),
            "metadata.json is not what was written",
        ),
    ],
    ids=["truncate", "remove", "flip", "garble", "list", "unfinished", "metadata"],
)
def test_damaged_files_are_written_again_with_a_warning(tmp_path: Path, change, problem: str):
    folder = ensure_written(tmp_path / "key", writer())
    change(folder)
    assert damage(folder) is not None
    with pytest.warns(UserWarning, match=rf"key: {problem}.*; the token files are made again"):
        assert (ensure_written(folder, writer()) / "train.bin").read_bytes() == b"tokens"
    assert damage(folder) is None


def test_a_file_is_hashed_once_for_each_state_of_it(tmp_path: Path, monkeypatch):
    folder = ensure_written(tmp_path / "key", writer())
    hashed: list[str] = []

    def sha256_of(file: Path) -> str:
        hashed.append(file.name)
        return hashlib.sha256(file.read_bytes()).hexdigest()

    monkeypatch.setattr("llm.data.corpora.token_cache.sha256_of_file", sha256_of)
    assert damage(folder) is None
    assert hashed == []
    os.utime(folder / "train.bin")
    assert damage(folder) is None
    assert damage(folder) is None
    assert hashed == ["train.bin"]
    (folder / "verified.json").write_text("{")
    assert damage(folder) is None
    assert hashed == ["train.bin"] * 2


def test_of_two_at_once_one_wins_and_both_read_the_whole(tmp_path: Path):
    both_are_writing = threading.Barrier(2, timeout=60)
    found = []

    def write(folder: Path) -> None:
        both_are_writing.wait()
        writer(b"x" * 100_000)(folder)

    def start() -> None:
        found.append((ensure_written(tmp_path / "key", write) / "train.bin").read_bytes())

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
        ensure_written(tmp_path / "key", write)
    assert list(tmp_path.iterdir()) == []


def test_metadata_is_json_for_people(tmp_path: Path):
    write_metadata(tmp_path, {"source": "Größe"})
    assert json.loads((tmp_path / METADATA).read_text(encoding="utf-8"))["source"] == "Größe"


def test_what_killed_processes_left_is_swept_and_what_others_fill_is_not(tmp_path: Path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    unique = "0123456789abcdef" * 2
    left = [f"a.{MACHINE}.{ended.pid}.{unique}", f"b.elsewhere.1.{unique}", f"c.{unique}"]
    kept = [f"a.{MACHINE}.{os.getppid()}.{unique}", f"b.elsewhere.2.{unique}", f"d.{unique}"]
    for name in (*left, *kept, "whole", "e.notes"):
        (tmp_path / name).mkdir()
    for name in (*left[1:], "whole", "e.notes"):
        os.utime(tmp_path / name, (0, 0))
    ensure_written(tmp_path / "key", writer())
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "whole", "e.notes", "key"}
