"""Verification of files by the SHA-256 stored in their folder: torch and safetensors do not notice a flipped byte."""

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
    """A checkpoint is damaged: its bytes are not those that were written."""


def replace(partial: Path, path: Path, *, previous: Path | None = None) -> None:
    """Replace a file by a completely written one, and record its digest.

    During the replacement the record contains the old and the new digest, so that an undamaged file never looks
    damaged after a crash.

    Args:
        partial: the new file, in the same folder.
        path: the file to replace.
        previous: new path of the replaced file, to keep it.
    """
    digest = sha256_of_file(partial)
    if previous is not None and path.is_file():
        _keep(path, previous)
    write_digests(path, [*recorded_digests(path), digest])
    partial.replace(path)
    write_digests(path, [digest])


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, atomically."""
    partial = partial_of(previous)
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(path)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, partial)
    write_digests(previous, [*recorded_digests(previous), *recorded_digests(path)])
    partial.replace(previous)
    write_digests(previous, recorded_digests(path))


def restore_previous(previous: Path, path: Path) -> None:
    """Replace a file by the previous one."""
    digests = recorded_digests(previous)
    write_digests(path, [*recorded_digests(path), *digests])
    previous.replace(path)
    write_digests(path, digests)
    write_digests(previous, [])


def remove_checkpoint(path: Path) -> None:
    """Delete a file or a folder, and its record."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    write_digests(path, [])


@contextmanager
def replacing_folder(path: Path, *, is_other_kind: bool) -> Iterator[None]:
    """Allow writing a file in place of a folder, or the reverse, which is not atomic.

    The old one is renamed, and deleted when the new one is in place. After a crash `llm.runs.existing_checkpoint` finds
    it.

    Args:
        path: the file or folder.
        is_other_kind: whether a folder is replaced by a file, or the reverse; otherwise nothing is renamed.
    """
    aside = backup_path(path)
    if is_other_kind and path.exists():
        remove_checkpoint(aside)  # left by a killed process
        write_digests(aside, recorded_digests(path))
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
    """Return the path of a checkpoint after verifying its SHA-256; errors are those of `verified_digest`."""
    verified_digest(path)
    return path


def verified_digest(path: Path) -> str:
    """Return the SHA-256 of a checkpoint after verifying it.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedCheckpointError: the file is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such checkpoint")
    return require_digest(path, recorded_digests(path), record=_record(path).name)


def require_digest(path: Path, digests: list[str], *, record: str) -> str:
    """Return the digest of a file, which must be one of `digests`.

    Raises:
        DamagedCheckpointError: the file is missing, there are no digests, or the file's digest is not one of them.
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


def write_digests(path: Path, digests: list[str]) -> None:
    """Record the digests of a file, or that of a folder's index; an empty list deletes the entry."""
    file = _record(path)
    entries = {name: known for name, known in _entries(file).items() if name != path.name}
    write_json(file, entries | ({path.name: digests} if digests else {}), indent=1)
