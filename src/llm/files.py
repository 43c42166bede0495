"""Files of folders that anybody may have made: read within bounds, and written whole.

A run, a sweep or a published model may be a stranger's. A link in it can lead to a file of the user's, reading
a pipe never ends, and a short text can unfold to more than the memory holds.
"""

import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm.config.reading import LARGEST_YAML, RESTORE, FileError, read_utf8, require_regular

# The name of a file that is being written, by the process of this number.
PARTIAL = re.compile(r"\..+\.(ckpt|csv|json|yaml|md|png|txt|jsonl|step)\.\d{1,7}")
# Far faster where PyYAML was built with libyaml.
PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


# Folders


def require_own(folder: Path, *within: str) -> None:
    """Let pass a folder that holds nothing but files and folders of its own.

    Args:
        folder: the folder, which need not exist.
        within: folders inside it, the content of which is looked at as well.

    Raises:
        FileError: a link leads out of it, or something is neither a file nor a folder, such as a pipe.
    """
    if not folder.is_dir():
        return
    for path in _entries(folder, within):
        if path.is_symlink():
            require_within(path, folder)
        require_regular(path)


def _entries(folder: Path, within: Collection[str]) -> Iterator[Path]:
    for path in folder.iterdir():
        yield path
        if path.name in within and not path.is_symlink():
            yield from path.rglob("*")


def require_within(path: Path, folder: Path) -> None:
    """Let pass a path that lies in a folder when its links are followed.

    Raises:
        FileError: it lies elsewhere.
    """
    try:
        is_within = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        is_within = False
    if not is_within:
        raise FileError(
            f"{path}: is a link that leads out of its folder; put the file itself there, or delete the link"
        )


# Reading


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: the file does not exist.
        FileError: it cannot be read, or is not JSON.
    """
    text = read_utf8(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: is not JSON ({error}); {RESTORE}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        FileError: there is no such file, or it holds something else.
    """
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise FileError(f"{path.parent} has no {path.name}; put the file there") from None
    if not isinstance(found, dict):
        raise FileError(f"{path}: holds no JSON object; {RESTORE}")
    return found


def read_yaml(path: Path) -> DictConfig:
    """The mapping that a YAML file holds.

    An alias takes a few bytes, and ten levels of ten aliases unfold to ten thousand million values: a file that
    was written by us has none.

    Raises:
        FileNotFoundError: the file does not exist.
        FileError: it cannot be read, is not YAML, has aliases, or holds something else.
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
        raise FileError(f"{path}: holds no YAML mapping; {RESTORE}")
    return found


def stored_archive(path: Path) -> Path:
    """The path of an archive that torch may open: what it holds takes no more room in memory than in the file.

    torch writes its archives uncompressed. A compressed one of a megabyte could unfold to a thousand.

    Raises:
        FileError: it is compressed.
    """
    if not zipfile.is_zipfile(path):
        return path  # which torch says itself
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise FileError(f"{path}: is damaged ({error}); {RESTORE}") from None
    is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not is_stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise FileError(f"{path}: is compressed, as torch writes none; put the file itself there")
    return path


# Writing


def partial_of(path: Path) -> Path:
    """The name under which this process writes a file before it takes its place, for `sweep_partials` to know."""
    return path.with_name(f".{path.name}.{os.getpid()}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a file to write beside another one, whose place it takes when it is written.

    So a reader sees the old content or the new, and a link in the place of the file is not followed.

    Raises:
        FileError: a link stands there that leads out of the folder.
    """
    if path.is_symlink():
        require_within(path, path.parent)
    partial = partial_of(path)
    partial.unlink(missing_ok=True)
    partial.touch(exist_ok=False)  # anew, and not through a link
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.filename in (None, str(partial)):  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def sweep_partials(*folders: Path) -> None:
    """Delete what `replacing` left behind of processes that were killed as they wrote.

    Args:
        folders: those to look into; they need not exist. Folders inside them are left alone.
    """
    for folder in folders:
        for path in folder.glob(".*"):
            is_partial = PARTIAL.fullmatch(path.name) and path.is_file()
            if is_partial and not is_running(int(path.suffix[1:])):
                path.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Whether this machine has a process of this number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file whole; half of a character becomes a question mark."""
    with replacing(path) as partial:
        partial.write_text(text, "utf-8", "replace")


def write_json(path: Path, content: Any, *, indent: int = 2) -> None:
    """Write a JSON file whole; what JSON does not know is written as text."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, default=str)
    write_text(path, text + "\n")


def open_for_appending(path: Path) -> TextIO:
    """A text file in UTF-8, to add lines to, each of which is written at once.

    Raises:
        FileError: a link stands there that leads out of the folder.
    """
    if path.is_symlink():
        require_within(path, path.parent)
    if (
        path.is_file() and path.stat().st_nlink > 1
    ):  # the same file under another name stays as it is
        with replacing(path) as partial:
            shutil.copyfile(path, partial)
    return path.open("a", buffering=1, encoding="utf-8", errors="replace", newline="")


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file of any size, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
