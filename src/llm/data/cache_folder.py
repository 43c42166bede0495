"""The folder of downloads and token files."""

import os
import tempfile
from pathlib import Path

import pooch

from llm.data.errors import DataError


def cache_folder() -> Path:
    """Return `$LLM_CACHE` if it is set, otherwise the platform's user cache directory."""
    chosen = os.environ.get("LLM_CACHE")
    return Path(chosen).expanduser() if chosen else Path(pooch.os_cache("llm"))


def writable_folder(name: str) -> Path:
    """Return the subfolder `name` of the cache; create it if needed.

    If `$LLM_CACHE` is read-only, such as a shared disk, the subfolder is in the platform's user cache directory.

    Raises:
        DataError: neither folder is writable.
    """
    candidates = [cache_folder() / name, Path(pooch.os_cache("llm")) / name]
    for candidate in candidates:
        if _is_writable(candidate):
            return candidate
    tried = " and ".join(str(candidate) for candidate in dict.fromkeys(candidates))
    raise DataError(f"LLM_CACHE: {tried} is not writable; set it to a writable folder")


def _is_writable(path: Path) -> bool:
    """Return whether a file can be created in a folder, by trying: mode bits are not enough."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError:
        return False
