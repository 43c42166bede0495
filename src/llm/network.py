"""What may be fetched: only what the user named; and for how long a server may take.

A run's configuration names data and weights too, and the run may be a stranger's: opening it must not contact
an address of his choice. What such a name stands for is then read only if it is on this machine already.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from queue import Empty, Queue
from typing import Any, TypeVar

Result = TypeVar("Result")

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
    results: Queue[tuple[Any, BaseException | None]] = Queue()

    def run() -> None:
        try:
            results.put((call(), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"timed out: no whole answer within {seconds:g} seconds") from None
    if error is not None:
        raise error
    return result
