"""Checkpoint files: written whole or not at all, checked when read, and holding nothing that executes."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from llm.config.errors import UserError


class DamagedCheckpointError(UserError):
    """A checkpoint's bytes are not those that were written."""


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically, under another name in the same folder first, and record its SHA-256.

    Neither `torch.load` nor safetensors notices a flipped byte. The record beside the checkpoints names
    the old and the new digest while one file replaces the other, so that no moment of a crash makes a
    whole file look damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        digest = sha256_of(partial)
        _write_digests(path, [*_read_digests(path), digest])
        partial.replace(path)
        _write_digests(path, [digest])
    finally:
        partial.unlink(missing_ok=True)


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint and its record."""
    path.unlink(missing_ok=True)
    _write_digests(path, [])


def load_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of tensors and plain data after checking its recorded SHA-256.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedCheckpointError: the file is not what was written.
    """
    return torch.load(verified(path), map_location=map_location, weights_only=True)


def verified(path: Path) -> Path:
    """The path of a checkpoint whose content is what its recorded SHA-256 says.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedCheckpointError: the file is not what was written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such checkpoint")
    digests = _read_digests(path)
    if digests and sha256_of(path) not in digests:
        raise DamagedCheckpointError(
            f"{path} is damaged: its SHA-256 is not the one in {_manifest(path).name}; "
            "weights.checkpoint=last or best reads the run's other one, rerun=true trains it again"
        )
    return path


def sha256_of(path: Path) -> str:
    """The digest of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(path: Path) -> Path:
    return path.with_name("sha256.json")


def _read_digests(path: Path) -> list[str]:
    manifest = _manifest(path)
    return json.loads(manifest.read_text("utf-8")).get(path.name, []) if manifest.is_file() else []


def _write_digests(path: Path, digests: list[str]) -> None:
    manifest = _manifest(path)
    entries = json.loads(manifest.read_text("utf-8")) if manifest.is_file() else {}
    entries[path.name] = digests
    partial = manifest.with_name(f".{manifest.name}.{os.getpid()}")
    partial.write_text(json.dumps(entries, indent=1) + "\n", "utf-8")
    partial.replace(manifest)
