"""Files that are known to be what was written: each folder keeps the SHA-256 of its files.

Neither `torch.load` nor safetensors notices a flipped byte.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm.config.errors import UserError
from llm.runs import aside_of

# What to do about a checkpoint that is damaged.
OTHERWISE = "weights.checkpoint=last or best reads the run's other one, rerun=true trains it again"


class DamagedCheckpointError(UserError):
    """A checkpoint's bytes are not those that were written."""


def replace(partial: Path, path: Path) -> None:
    """Let a file that is wholly written take another's place, and record its digest.

    The record names the old and the new digest while one file replaces the other, so that no moment of a
    crash makes a whole file look damaged.
    """
    digest = sha256_of(partial)
    _write(path, [*_read(path), digest])
    partial.replace(path)
    _write(path, [digest])


def remove(path: Path) -> None:
    """Delete a file, and its record, or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    _write(path, [])


@contextmanager
def set_aside(path: Path, is_wrong: bool) -> Iterator[None]:
    """Around the writing of a file where a folder stood, or the reverse: neither can take the other's place.

    What stood there is kept under another name until the new one is in its place. Who is killed before
    that leaves it there, where `llm.runs.standing` finds it.
    """
    aside = aside_of(path)
    if is_wrong and path.exists():
        remove(aside)  # of an earlier kill, after the new one was in its place
        _write(aside, _read(path))
        path.rename(aside)
    try:
        yield
    except BaseException:
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise
    if aside.exists():
        remove(aside)


def verified(path: Path) -> Path:
    """The path of a checkpoint whose content is what its recorded SHA-256 says.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedCheckpointError: the file is not what was written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such checkpoint")
    digests = _read(path)
    if digests:
        require_digest(path, digests, _record(path).name)
    return path


def require_digest(path: Path, digests: list[str], record: str) -> None:
    """See that a file's content has one of the digests that a record has of it.

    Raises:
        DamagedCheckpointError: it is missing, or has another.
    """
    if not path.is_file() or sha256_of(path) not in digests:
        raise DamagedCheckpointError(
            f"{path} is damaged: its SHA-256 is not the one in {record}; {OTHERWISE}"
        )


def sha256_of(path: Path) -> str:
    """The digest of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _record(path: Path) -> Path:
    return path.with_name("sha256.json")


def _read(path: Path) -> list[str]:
    record = _record(path)
    return json.loads(record.read_text("utf-8")).get(path.name, []) if record.is_file() else []


def _write(path: Path, digests: list[str]) -> None:
    record = _record(path)
    entries = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    entries.pop(path.name, None)
    if digests:
        entries[path.name] = digests
    partial = record.with_name(f".{record.name}.{os.getpid()}")
    partial.write_text(json.dumps(entries, indent=1) + "\n", "utf-8")
    partial.replace(record)
