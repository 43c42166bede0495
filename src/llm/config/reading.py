"""Safe reading of untrusted files: only regular files, up to a maximum size."""

import os
from pathlib import Path

from llm.config.errors import ConfigError

LARGEST = 2**28  # bytes of a text file; the tokenizers of published models have about 20 MB
LARGEST_YAML = 2**20  # bytes; YAML is slow to parse, and the configuration of a run has about 10 kB
RESTORE = "restore the file from a copy"


class FileError(ConfigError, ValueError):
    """An error in a file; also a ValueError, so that a constructor may raise it for a wrong value."""


def require_regular(path: Path) -> None:
    """Refuse a path that is neither a file nor a folder.

    Raises:
        FileError: it is something else, such as a pipe or a device.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileError(f"{path}: is neither a file nor a folder; delete it, or put the file there")


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """Return the content of a file with at most `most` bytes.

    Raises:
        FileNotFoundError: the file does not exist.
        FileError: the file is not regular, is too large or cannot be read.
    """
    require_regular(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise FileError(
                    f"{path}: has {size:,} bytes, more than the maximum of {most:,}; "
                    "put the right file there"
                )
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); put the file there") from None


def read_utf8(path: Path, most: int = LARGEST) -> str:
    """Return the content of a text file in UTF-8.

    Raises:
        FileNotFoundError: the file does not exist.
        FileError: the file cannot be read or is not text.
    """
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: is not UTF-8 text (byte {error.start}); {RESTORE}") from None
