"""Safe reading of files in untrusted folders, and atomic writing.

A run, a sweep or a published model may be untrusted. A link in it can lead to another file of the user, reading a pipe
may never end, and a short text can expand to more than the memory holds.
"""

import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm.config.reading import LARGEST_YAML, RESTORE, FileError, read_utf8, require_regular

# Temporary name of a file; it ends with the number of the process that writes it.
PARTIAL = re.compile(r"\..+\.(ckpt|csv|json|yaml|md|png|txt|jsonl|step)\.\d{1,7}")
# The parser in C is much faster, and exists if PyYAML was built with libyaml.
PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


# Folders


def require_own(folder: Path, *within: str) -> None:
    """Require that a folder contains only files, folders, and links within it.

    Args:
        folder: the folder, which need not exist.
        within: folders inside it whose content is checked too.

    Raises:
        FileError: a link leads out of the folder, or an entry is neither a file nor a folder, such as a pipe.
    """
    if not folder.is_dir():
        return
    entries = [*folder.iterdir()]
    for inner in (folder / name for name in within):
        entries += [] if inner.is_symlink() else inner.rglob("*")
    for path in entries:
        if path.is_symlink():
            require_within(path, folder)
        require_regular(path)


def require_within(path: Path, folder: Path) -> None:
    """Require that a path, with links followed, is inside a folder.

    Raises:
        FileError: it is outside.
    """
    try:
        is_within = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # the links form a loop
        is_within = False
    if not is_within:
        raise FileError(
            f"{path}: is a link that leads out of its folder; replace it by the file itself, or delete it"
        )


# Reading


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        FileError: the file cannot be read or is not JSON.
    """
    text = read_utf8(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: is not JSON ({error}); {RESTORE}") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        FileError: the file does not exist, or contains something else.
    """
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise FileError(f"{path.parent} has no {path.name}; put the file there") from None
    if not isinstance(found, dict):
        raise FileError(f"{path}: is not a JSON object; {RESTORE}")
    return found


def read_yaml(path: Path) -> DictConfig:
    """Return the mapping in a YAML file.

    Aliases are refused: ten levels of ten aliases expand to ten billion values. Our own files have none.

    Raises:
        FileNotFoundError: the file does not exist.
        FileError: the file cannot be read, is not YAML, has aliases, or contains something else.
    """
    text = read_utf8(path, LARGEST_YAML)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=PARSER)):
            raise FileError(f"{path}: has YAML aliases (*name); write the values out")
        found = OmegaConf.load(io.StringIO(text))
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, TypeError) as error:
        line = " ".join(str(error).split())[:200]
        raise FileError(f"{path}: is not YAML ({line}); {RESTORE}") from None
    if not isinstance(found, DictConfig) or not found:
        raise FileError(f"{path}: is not a YAML mapping; {RESTORE}")
    return found


def stored_archive(path: Path) -> Path:
    """Check that an archive is not compressed, and return its path.

    torch does not compress its archives. A compressed megabyte could expand to a gigabyte.

    Raises:
        FileError: the archive is damaged or compressed.
    """
    if not zipfile.is_zipfile(path):
        return path  # torch reports this
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise FileError(f"{path}: is damaged ({error}); {RESTORE}") from None
    is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not is_stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise FileError(f"{path}: is compressed, unlike torch's archives; put the original there")
    return path


# Writing


def partial_of(path: Path) -> Path:
    """Return the temporary name under which this process writes a file."""
    return path.with_name(f".{path.name}.{os.getpid()}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces `path` at the end of the block.

    A reader sees the old or the new content, and a link at `path` is not followed.

    Raises:
        FileError: `path` is a link that leads out of its folder.
    """
    if path.is_symlink():
        require_within(path, path.parent)
    partial = partial_of(path)
    partial.unlink(missing_ok=True)
    partial.touch(exist_ok=False)  # fails if there is a link at this path
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.filename in (None, str(partial)):  # the error of a full disk names no file
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def delete_partials(*folders: Path) -> None:
    """Delete temporary files of `replacing` whose processes were killed; subfolders are skipped."""
    for folder in folders:
        for path in folder.glob(".*"):
            is_partial = PARTIAL.fullmatch(path.name) and path.is_file()
            if is_partial and not is_running(int(path.suffix[1:])):
                path.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Return whether a process with this number runs on this machine."""
    try:
        with suppress(PermissionError):  # a process of another user
            os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; an incomplete character becomes a question mark."""
    with replacing(path) as partial:
        partial.write_text(text, "utf-8", "replace")


def write_json(path: Path, content: Any, *, indent: int = 2) -> None:
    """Write a JSON file atomically; values of other types are written as text."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, default=str)
    write_text(path, text + "\n")


def open_for_appending(path: Path) -> TextIO:
    """Open a UTF-8 text file for appending, with each line flushed.

    Raises:
        FileError: `path` is a link that leads out of its folder.
    """
    if path.is_symlink():
        require_within(path, path.parent)
    # A copy replaces a hard link, so that the file does not change under its other name.
    if path.is_file() and path.stat().st_nlink > 1:
        with replacing(path) as partial:
            shutil.copyfile(path, partial)
    return path.open("a", buffering=1, encoding="utf-8", errors="replace", newline="")


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file of any size, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
