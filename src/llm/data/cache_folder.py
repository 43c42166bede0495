"""Where downloads and token files are kept: outside the user's own folders."""

import os
import uuid
from pathlib import Path

import pooch

from llm.data.errors import DataError


def cache_folder() -> Path:
    """The cache: `$LLM_CACHE` where that is set, the platform's user cache directory otherwise."""
    chosen = os.environ.get("LLM_CACHE")
    return Path(chosen).expanduser() if chosen else Path(pooch.os_cache("llm"))


def writable_folder(name: str) -> Path:
    """The sub-folder `name` of the cache, made if need be.

    A read-only `$LLM_CACHE` (published files on a shared disk) still serves downloads; what has to
    be written then goes to the platform's user cache directory.

    Raises:
        DataError: Neither can be written to.
    """
    candidates = [cache_folder() / name, Path(pooch.os_cache("llm")) / name]
    for candidate in candidates:
        if _is_writable(candidate):
            return candidate
    tried = " and ".join(str(candidate) for candidate in dict.fromkeys(candidates))
    raise DataError(
        f"LLM_CACHE: {tried} cannot be written to; set it to a folder that can be written to"
    )


def _is_writable(path: Path) -> bool:
    """Whether a file can be made there: asked of the file system, for mode bits do not tell."""
    probe = path / f".{uuid.uuid4().hex}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True
