"""What may be fetched: only what the user named.

A run's configuration names data and weights too, and the run may be a stranger's: opening it must not contact
an address of his choice. What such a name stands for is then read only if it is on this machine already.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
