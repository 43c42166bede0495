"""What may be fetched: only what the user named; and for how long a server may take.

A run's configuration names data and weights too, and the run may be a stranger's: opening it must not contact
an address of his choice. What such a name stands for is then read only if it is on this machine already.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from pathlib import Path
from queue import Empty, Queue
from typing import Any, TypeVar

Result = TypeVar("Result")

# A download has to bring so many bytes a second in every period of so many seconds.
SLOWEST = 1024
PERIOD = 60.0

_OFFLINE: ContextVar[str | None] = ContextVar("offline", default=None)


@contextmanager
def offline(who: str) -> Iterator[None]:
    """Let nothing be fetched inside this block, because `who` and not the user named it."""
    token = _OFFLINE.set(who)
    try:
        yield
    finally:
        _OFFLINE.reset(token)


def is_offline() -> bool:
    """Whether nothing may be fetched now."""
    return _OFFLINE.get() is not None


def refusal(what: str) -> str | None:
    """Why something must not be fetched now; None where it may."""
    who = _OFFLINE.get()
    return f"{what} is named by {who}, not by you, so it is not fetched" if who else None


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """Return the result of a call that waits for a server, which has so many seconds for all of it.

    The timeout of a socket is one for each piece that arrives: a server that sends a byte now and then would
    hold the call for ever. A call that is given up goes on in a thread that nobody waits for.

    Raises:
        TimeoutError: the seconds are over.
    """
    try:
        return _started(call)(seconds)
    except Empty:
        raise TimeoutError(f"timed out: no whole answer within {seconds:g} seconds") from None


def downloaded(call: Callable[[], Result], *folders: Path, seconds: float | None = None) -> Result:
    """Return the result of a download, however long it takes, unless it becomes too slow.

    How long a file may take depends on its size, so the deadline is a rate: in each period at least
    `SLOWEST` bytes a second have to arrive. A download that is given up goes on in a thread that nobody waits for.

    Args:
        call: downloads.
        folders: those that it writes to as the bytes arrive; they need not exist.
        seconds: length of a period; None takes `PERIOD`.

    Raises:
        TimeoutError: less than that has arrived in a period.
    """
    seconds = PERIOD if seconds is None else seconds
    result, before = _started(call), _size(folders)
    while True:
        try:
            return result(seconds)
        except Empty:
            now = _size(folders)
            if now - before < SLOWEST * seconds:
                raise TimeoutError(
                    f"less than {SLOWEST:,} bytes a second arrived in {seconds:g} seconds"
                ) from None
            before = now


def _started(call: Callable[[], Result]) -> Callable[[float], Result]:
    """Begin a call in a thread; returns what waits for its result for some seconds, and raises Empty after them."""
    results: Queue[tuple[Any, BaseException | None]] = Queue()
    context = copy_context()  # whether the network may be used, among others

    def run() -> None:
        try:
            results.put((context.run(call), None))
        except BaseException as error:
            results.put((None, error))

    def wait(seconds: float) -> Result:
        result, error = results.get(timeout=seconds)
        if error is not None:
            raise error
        return result

    threading.Thread(target=run, daemon=True).start()
    return wait


def _size(folders: Iterable[Path]) -> int:
    """Bytes in all files below some folders; a file that goes meanwhile counts nothing."""
    total = 0
    for folder in folders:
        for path in folder.rglob("*"):
            with suppress(OSError):
                total += path.lstat().st_size
    return total
