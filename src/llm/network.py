"""Permission to download, and deadlines for calls to servers.

Only what the user has named may be downloaded. A run's configuration names data and weights too, but the run may be
untrusted, so these are read only if they are already on this machine.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

# A download must reach SLOWEST bytes per second in every period of PERIOD seconds.
SLOWEST = 1024
PERIOD = 60.0

_OFFLINE: ContextVar[str | None] = ContextVar("offline", default=None)


@contextmanager
def offline(who: str) -> Iterator[None]:
    """Forbid downloads inside this block, because `who`, and not the user, names the addresses."""
    token = _OFFLINE.set(who)
    try:
        yield
    finally:
        _OFFLINE.reset(token)


def is_offline() -> bool:
    """Return whether downloads are forbidden now."""
    return _OFFLINE.get() is not None


def refusal(what: str) -> str | None:
    """Return why something may not be downloaded now; None if it may."""
    who = _OFFLINE.get()
    return f"{what} is named by {who}, not by you, so it is not downloaded" if who else None


def call_within(seconds: float, call: Callable[[], Result]) -> Result:
    """Return the result of a call to a server, with a deadline in seconds for the whole call.

    The timeout of a socket applies to each read, so a slow server could block forever. After the deadline, the call
    continues in a thread whose result is ignored.

    Raises:
        TimeoutError: the deadline has passed.
    """
    future = _start(call)
    if not wait([future], seconds).done:
        raise TimeoutError(f"timed out: no complete answer within {seconds:g} seconds")
    return future.result()


def run_download(
    call: Callable[[], Result], *folders: Path, seconds: float | None = None
) -> Result:
    """Return the result of a download. It may take any time, but must not become too slow.

    At least `SLOWEST` bytes per second must arrive in each period. A download that is too slow continues in a thread
    whose result is ignored.

    Args:
        call: the download.
        folders: folders to which it writes; they need not exist.
        seconds: length of a period; None means `PERIOD`.

    Raises:
        TimeoutError: too few bytes arrived in a period.
    """
    seconds = PERIOD if seconds is None else seconds
    future, before = _start(call), _size(folders)
    while not wait([future], seconds).done:
        now = _size(folders)
        if now - before < SLOWEST * seconds:
            raise TimeoutError(
                f"less than {SLOWEST:,} bytes a second arrived in {seconds:g} seconds"
            )
        before = now
    return future.result()


def _start(call: Callable[[], Result]) -> "Future[Result]":
    """Start a call in a daemon thread, which does not keep the process alive."""
    future: Future[Result] = Future()
    context = copy_context()  # includes whether downloads are forbidden

    def run() -> None:
        try:
            future.set_result(context.run(call))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _size(folders: Iterable[Path]) -> int:
    """Return the bytes in all files below some folders; a file that is deleted meanwhile counts 0."""
    total = 0
    for folder in folders:
        for path in folder.rglob("*"):
            with suppress(OSError):
                total += path.lstat().st_size
    return total
