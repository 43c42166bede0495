"""Verification of files: each folder stores the SHA-256 of its files.

Neither `torch.load` nor safetensors notices a flipped byte.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm.config.errors import UserError
from llm.files import FileError, partial_of, read_json, sha256_of_file, write_json
from llm.runs import backup_path


class DamagedCheckpointError(UserError):
    """A checkpoint's bytes are not those that were written."""


def replace(partial: Path, path: Path, *, previous: Path | None = None) -> None:
    """Replace a file by a completely written one, and record its digest.

    The record contains the old and the new digest during the replacement, so that an undamaged file never looks
    damaged after a crash.

    Args:
        partial: the new file, in the same folder.
        path: the file to replace.
        previous: where to keep the replaced file; None keeps none.
    """
    digest = sha256_of_file(partial)
    if previous is not None and path.is_file():
        _keep(path, previous)
    _write(path, [*recorded_digests(path), digest])
    partial.replace(path)
    _write(path, [digest])


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, without a moment at which it has none."""
    partial = partial_of(previous)
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(path)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, partial)
    _write(previous, [*recorded_digests(previous), *recorded_digests(path)])
    partial.replace(previous)
    _write(previous, recorded_digests(path))


def bring_back(previous: Path, path: Path) -> None:
    """Replace a file by the kept one that it had replaced."""
    digests = recorded_digests(previous)
    _write(path, [*recorded_digests(path), *digests])
    previous.replace(path)
    _write(path, digests)
    _write(previous, [])


def note_folder(path: Path, digest: str) -> None:
    """Record that a folder was written, so that its loss is noticed; its files have a record of their own."""
    _write(path, [digest])


def remove_checkpoint(path: Path) -> None:
    """Delete a file or a folder, and its record."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    _write(path, [])


@contextmanager
def replacing_folder(path: Path, *, is_wrong: bool) -> Iterator[None]:
    """Allow writing a file in place of a folder, or the reverse: neither can replace the other atomically.

    The old one is kept under another name until the new one is in place. After a crash before that it is still
    there, and `llm.runs.existing_checkpoint` finds it.
    """
    aside = backup_path(path)
    if is_wrong and path.exists():
        remove_checkpoint(aside)  # left by a process killed after the new one was in place
        _write(aside, recorded_digests(path))
        path.rename(aside)
    try:
        yield
    except BaseException:
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise
    if aside.exists():
        remove_checkpoint(aside)


def verified(path: Path) -> Path:
    """Return the path of a checkpoint after verifying its SHA-256.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedCheckpointError: the file is not what was written.
    """
    verified_digest(path)
    return path


def verified_digest(path: Path) -> str:
    """Return the SHA-256 of a checkpoint after verifying it.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedCheckpointError: the file is not what was written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such checkpoint")
    return require_digest(path, recorded_digests(path), record=_record(path).name)


def require_digest(path: Path, digests: list[str], *, record: str) -> str:
    """Return the digest of a file, which must be one of those recorded.

    A record without the file proves nothing, so it counts as damage.

    Raises:
        DamagedCheckpointError: the file is missing or not in the record, or its content differs from the record.
    """
    if not digests:
        raise DamagedCheckpointError(f"{path} is damaged: {record} has no SHA-256 of it")
    digest = sha256_of_file(path) if path.is_file() else None
    if digest not in digests:
        raise DamagedCheckpointError(f"{path} is damaged: its SHA-256 is not the one in {record}")
    return digest


def flush(path: Path) -> None:
    """Wait until a file is on disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def recorded_digests(path: Path) -> list[str]:
    """Return the digests of a file recorded in its folder; empty if the record is unreadable."""
    digests = _entries(_record(path)).get(path.name, [])
    return digests if isinstance(digests, list) else []


def _record(path: Path) -> Path:
    return path.with_name("sha256.json")


def _entries(record: Path) -> dict[str, Any]:
    try:
        entries = read_json(record)
    except (FileNotFoundError, FileError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _write(path: Path, digests: list[str]) -> None:
    record = _record(path)
    entries = {name: known for name, known in _entries(record).items() if name != path.name}
    write_json(record, entries | ({path.name: digests} if digests else {}), indent=1)
