"""Files that are known to be what was written: each folder keeps the SHA-256 of its files.

Neither `torch.load` nor safetensors notices a flipped byte.
"""

import hashlib
import json
import os
from pathlib import Path

from llm.config.errors import UserError


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
    """Delete a file and its record."""
    path.unlink(missing_ok=True)
    _write(path, [])


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
            f"{path} is damaged: its SHA-256 is not the one in {record}; "
            "weights.checkpoint=last or best reads the run's other one, rerun=true trains it again"
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
    entries[path.name] = digests
    partial = record.with_name(f".{record.name}.{os.getpid()}")
    partial.write_text(json.dumps(entries, indent=1) + "\n", "utf-8")
    partial.replace(record)
