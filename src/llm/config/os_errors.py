"""Errors of the operating system about files, as one line that says what to do.

Libraries raise other errors instead: on a full disk, torch fails with `unexpected pos`, because it closes its archive
while the first error propagates. So the error of the operating system is searched among the causes.
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
    errno.ENOTDIR: "a component of this path is a file; use a folder",
    errno.EEXIST: "exists already and is not a folder; choose another name",
    errno.EISDIR: "is a folder; move it away, or choose another name",
    errno.ELOOP: "is a symbolic link, which is not followed here; delete it, or choose another folder",
    errno.ENXIO: "is neither a file nor a folder; delete it, or choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


class StorageError(UserError):
    """A file cannot be read or written, for a reason outside the configuration."""


@contextmanager
def explain_os_errors() -> Iterator[None]:
    """Turn an error about a file, also from a data loader's worker process, into one line.

    Raises:
        StorageError: the disk is full or broken.
        ConfigError: a path of the user cannot be used.
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
        prefix = f"{cause.filename}: " if cause.filename else ""
        if cause.errno in WRONG:
            raise ConfigError(f"{prefix}{WRONG[cause.errno]}") from error
        raise StorageError(f"{prefix}{FULL[cause.errno or 0]}") from error


def _from_worker(error: UserError) -> str | None:
    """Return the message of an error in a data loader's worker, which torch puts after the traceback."""
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    before, _, line = str(error).rpartition(f"\n{name}: ")
    return line.strip() if "DataLoader worker" in before else None


def _cause(error: BaseException) -> OSError | None:
    """Return the error of the operating system: this one, or a full disk among its causes."""
    if isinstance(error, OSError) and error.errno in WRONG:
        return error
    cause: BaseException | None = error
    for _ in range(20):  # causes may form a loop
        if isinstance(cause, OSError) and cause.errno in FULL:
            return cause
        if "(os error 28)" in str(cause):  # raised by safetensors
            return OSError(errno.ENOSPC, "")
        cause = cause and (cause.__cause__ or cause.__context__)
    return None
