"""A cache of token files: one folder for each fingerprint, created atomically."""

import json
import os
import platform
import re
import shutil
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm.data.data_fingerprint import digest
from llm.files import is_running, read_json, read_object, sha256_of_file, write_json

METADATA = "metadata.json"
VERIFIED = "verified.json"  # states of files whose content has been verified
# Name of an unfinished folder: its final name, the machine and process that fill it, and a random part.
UNFINISHED = re.compile(r"\w+\.((?P<machine>[\w-]*)\.(?P<process>\d+)\.)?[0-9a-f]{32}")
LONG = 7 * 24 * 3600  # seconds; filling a folder takes less
MACHINE = re.sub(r"\W", "-", platform.node())


def ensure_written(folder: Path, write: Callable[[Path], None]) -> Path:
    """Return the folder; write it if it does not exist, and again, with a warning, if it is damaged.

    It is written under another name and then renamed, which is atomic, so an unfinished folder is never used. If two
    processes write it, the files of the first to finish are kept.

    Args:
        folder: path of the folder; its name is a fingerprint of the content.
        write: fills the given folder, `metadata.json` last.
    """
    problem = damage(folder)
    if problem is None:
        return folder
    if folder.exists():
        warnings.warn(f"{folder}: {problem}; the token files are made again", stacklevel=2)
    shutil.rmtree(folder, ignore_errors=True)
    delete_unfinished(folder.parent)
    unfinished = folder.with_name(f"{folder.name}.{MACHINE}.{os.getpid()}.{uuid.uuid4().hex}")
    unfinished.mkdir(parents=True)
    try:
        write(unfinished)
        os.replace(unfinished, folder)  # noqa: PTH105 - the usual name of an atomic rename
    except OSError:
        if damage(folder) is not None:
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def delete_unfinished(cache: Path) -> None:
    """Delete unfinished folders of processes that were killed.

    Several machines may share the cache: a folder of another machine is deleted when it is old.
    """
    for folder in cache.glob("*.*"):
        if found := UNFINISHED.fullmatch(folder.name):
            is_ours = found["machine"] == MACHINE
            is_old = time.time() - folder.stat().st_mtime > LONG
            if is_old or (is_ours and not is_running(int(found["process"]))):
                shutil.rmtree(folder, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """Return what is wrong with a folder; None if all its files exist and are unchanged.

    A file is hashed again only if its size, times or inode have changed since it was verified.
    """
    try:
        metadata = read_object(folder / METADATA)
        if metadata.pop("sha256") != _hash_of(metadata):
            return f"{METADATA} is not what was written"
        return _damage_of_files(folder, metadata["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{METADATA} is missing or cannot be read"


def _damage_of_files(folder: Path, files: dict[str, dict[str, Any]]) -> str | None:
    known: dict[str, list[int]] = {}
    with suppress(OSError, ValueError):
        known = read_json(folder / VERIFIED)
    states = {name: state_of(folder / name) for name in files if (folder / name).is_file()}
    for name, written in files.items():
        if name not in states:
            return f"{name} is missing"
        if states[name][0] != written["bytes"]:
            return f"{name} has {states[name][0]:,} bytes, not {written['bytes']:,}"
        if known.get(name) != states[name] and sha256_of_file(folder / name) != written["sha256"]:
            return f"{name} is not what was written (its SHA-256 differs)"
    if known != states:
        _remember(folder, states)
    return None


def write_metadata(folder: Path, metadata: dict[str, object]) -> None:
    """Write the metadata of a folder, with the sizes and hashes of its files."""
    files = sorted(folder.iterdir())
    hashes = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)} for file in files
    }
    whole = {**metadata, "files": hashes}
    write_json(folder / METADATA, {**whole, "sha256": _hash_of(whole)})
    _remember(folder, {file.name: state_of(file) for file in files})


def state_of(file: Path) -> list[int]:
    """Return the size, mtime, ctime and inode of a file; a write changes ctime even if mtime is set back."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _hash_of(metadata: dict[str, Any]) -> str:
    return digest(json.dumps(metadata, sort_keys=True).encode())


def _remember(folder: Path, states: dict[str, list[int]]) -> None:
    """Record that files were verified; in a read-only folder they are hashed each time instead."""
    with suppress(OSError):
        write_json(folder / VERIFIED, states)
