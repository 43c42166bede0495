"""What the operating system says of files, in one line with the way out.

Libraries that write files hide it: torch ends a checkpoint on a full disk with `unexpected pos`, because its
archive is closed while the first error is on its way. So the first cause is looked for.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from llm.config.errors import ConfigError, UserError

FULL = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "the file would be larger than is allowed; raise the limit (ulimit -f) and run the same command again",
    errno.EIO: "the disk cannot be read or written (input/output error); use another one",
}
WRONG = {
    errno.EROFS: "the file system is read-only; choose a folder that can be written to",
    errno.EACCES: "permission denied; choose another folder, or change its permissions",
    errno.EPERM: "the operation is not permitted; choose another folder, or change its permissions",
    errno.ENOTDIR: "a part of this path is a file; name a folder",
    errno.EEXIST: "is there already, and is not a folder; choose another name",
    errno.EISDIR: "is a folder; move it away, or choose another name",
    errno.ELOOP: "is a link, where none is followed; delete it, or choose another folder",
    errno.ENXIO: "is neither a file nor a folder; delete it, or choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


class StorageError(UserError):
    """A file cannot be read or written, for a reason that has nothing to do with the configuration."""


@contextmanager
def explained() -> Iterator[None]:
    """Turn what the operating system says of a file, or a process that gathers batches of its data, into one line.

    Raises:
        StorageError: the disk is full or broken.
        ConfigError: a path that the user gave cannot be used.
    """
    try:
        yield
    except UserError as error:
        if (line := _from_worker(error)) is not None:
            raise type(error)(line) from error
        raise
    except Exception as error:
        if (cause := _cause(error)) is None:
            raise
        place = f"{cause.filename}: " if cause.filename else ""
        if cause.errno in WRONG:
            raise ConfigError(f"{place}{WRONG[cause.errno]}") from error
        raise StorageError(f"{place}{FULL[cause.errno or 0]}") from error


def _from_worker(error: UserError) -> str | None:
    """The message of an error in a process that gathers batches: torch repeats it behind that process's traceback."""
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    before, _, line = str(error).rpartition(f"\n{name}: ")
    return line.strip() if "DataLoader worker" in before else None


def _cause(error: BaseException) -> OSError | None:
    """The error of the operating system: this one, or a full disk behind it."""
    if isinstance(error, OSError) and error.errno in WRONG:
        return error
    behind: BaseException | None = error
    for _ in range(20):  # a chain may be a circle
        if isinstance(behind, OSError) and behind.errno in FULL:
            return behind
        if "(os error 28)" in str(behind):  # of safetensors
            return OSError(errno.ENOSPC, "")
        behind = behind and (behind.__cause__ or behind.__context__)
    return None
