"""Token files made once: a folder for each fingerprint, which is there as a whole or not at all."""

import json
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from llm.files import is_running

METADATA = "metadata.json"
# The name of a folder that is being filled: what it will be called, by whom it is filled, and something unique.
UNFINISHED = re.compile(r"\w+\.((?P<machine>[\w-]*)\.(?P<process>\d+)\.)?[0-9a-f]{32}")
LONG = 7 * 24 * 3600  # seconds, in which any folder is filled


def cached(folder: Path, write: Callable[[Path], None]) -> Path:
    """Return the folder, written first if it is not there.

    It is written under another name and then renamed, in one step. So nothing half-written is ever
    used, and of two processes at once the first to finish wins while the other, whose files are
    the same, drops its own.

    Args:
        folder: Where it is to be; its name is a fingerprint of what it depends on.
        write: Fills the folder that it is given, its `metadata.json` last.
    """
    if is_whole(folder):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    sweep_unfinished(folder.parent)
    unfinished = folder.with_name(f"{folder.name}.{_machine()}.{os.getpid()}.{uuid.uuid4().hex}")
    unfinished.mkdir(parents=True)
    try:
        write(unfinished)
        os.replace(unfinished, folder)  # noqa: PTH105 - the pair of words everybody knows
    except OSError:
        if not is_whole(folder):
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _machine() -> str:
    return re.sub(r"\W", "-", platform.node())


def sweep_unfinished(cache: Path) -> None:
    """Delete what was not finished by processes that were killed.

    Of this machine's processes it is known which are gone; several machines may share the cache, and of another's
    a folder counts as left behind when it is old.
    """
    for folder in cache.glob("*.*"):
        if found := UNFINISHED.fullmatch(folder.name):
            is_ours = found["machine"] == _machine()
            is_old = time.time() - folder.stat().st_mtime > LONG
            if is_old or (is_ours and not is_running(int(found["process"]))):
                shutil.rmtree(folder, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Whether every file that the metadata names is there in its full size."""
    try:
        sizes = read_metadata(folder)["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def write_metadata(folder: Path, metadata: dict[str, object]) -> None:
    """Write what is known of the files in a folder, and their sizes."""
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    text = json.dumps({**metadata, "files": sizes}, indent=2, ensure_ascii=False)
    (folder / METADATA).write_text(text + "\n", encoding="utf-8")


def read_metadata(folder: Path) -> dict:
    """Read what `write_metadata` wrote."""
    return json.loads((folder / METADATA).read_text(encoding="utf-8"))
