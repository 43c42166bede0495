"""Files of any origin, read within bounds: regular files alone, and none larger than such a file can be."""

import os
from pathlib import Path

from llm.config.errors import ConfigError

LARGEST = 2**28  # bytes of a text file; the tokenizers of published models take some 20 MB
LARGEST_YAML = 2**20  # bytes; it is parsed slowly, and a run's configuration takes some 10 kB
RESTORE = "restore the file from a copy"


class FileError(ConfigError, ValueError):
    """A file is not what it should be; a constructor that reads one may let it pass as a wrong value."""


def require_regular(path: Path) -> None:
    """Let pass a file, a folder, or a name at which there is nothing.

    Raises:
        FileError: there is something else, such as a pipe or a device.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileError(f"{path}: is neither a file nor a folder; delete it, or put the file there")


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """The content of a file.

    Args:
        path: the file.
        most: the number of bytes above which it is not read.

    Raises:
        FileNotFoundError: the file does not exist.
        FileError: it is not a regular file, is too large, or cannot be read.
    """
    require_regular(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise FileError(
                    f"{path}: has {size:,} bytes, more than the {most:,} that such a file may have; "
                    "put the right file there"
                )
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); put the file there") from None


def read_utf8(path: Path, most: int = LARGEST) -> str:
    """The content of a text file in UTF-8.

    Raises:
        FileNotFoundError: the file does not exist.
        FileError: it cannot be read, or is not text.
    """
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: is not UTF-8 text (byte {error.start}); {RESTORE}") from None
