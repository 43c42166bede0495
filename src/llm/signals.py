"""The signals by which a process is asked to stop, and how they are heard: the same ones everywhere.

Ctrl-C, what a scheduler or `kill` sends (some announce the end of a job's time by a user's signal), and the end
of the terminal. The last one takes away where the process prints to: from then on that goes nowhere, so that
what is said while a run is saved does no harm.
"""

import os
import signal
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Those that a process heeds even if it was told to ignore them.
ALWAYS = (signal.SIGINT, signal.SIGTERM)
# What a process exits with that was asked to stop, and did: by SIGTERM as shells report it, else as after Ctrl-C.
INTERRUPTED = (130, 143)

Handler = Callable[[int, Any], Any]

_raised: list[int] = []  # signals at which this process was to stop at once


class Stopped(KeyboardInterrupt):
    """This process was asked to stop, and does so at once.

    Like KeyboardInterrupt it is no Exception: a sweep must not go on to its next job.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int, how: str | None = None) -> None:
        super().__init__(how or signal.Signals(number).name)
        self.number = number


def stop(number: int, frame: object) -> None:
    """Handle a signal by stopping at once.

    Raises:
        Stopped: always.
    """
    _raised.append(number)
    raise Stopped(number)


def stop_behind(error: BaseException) -> BaseException | None:
    """Return what stopped this process if an error came of it, else None.

    `Stopped` is raised wherever the process happens to be. A library that is being imported, or is changing its own
    state, may fail because of it later and in another way.
    """
    if isinstance(error, KeyboardInterrupt):
        return error
    if not _raised or (isinstance(error, SystemExit) and error.code in INTERRUPTED):
        return None
    return Stopped(_raised[-1])


def number_of(error: BaseException) -> int:
    """The signal behind an exception that stops a process: Ctrl-C, where it does not say."""
    return getattr(error, "number", signal.SIGINT)


def status_of(number: int) -> int:
    """What a process exits with that a signal has stopped."""
    return 128 + (signal.SIGTERM if number == signal.SIGTERM else signal.SIGINT)


def handling() -> list[signal.Signals]:
    """All but what this process was told to ignore, such as the end of the terminal by nohup.

    Ctrl-C is heeded even by a script's background job, which ignores it by birth: a sweep and a launcher
    of ranks tell their processes by it.
    """
    return [
        number
        for number in STOPPING
        if number in ALWAYS or signal.getsignal(number) != signal.SIG_IGN
    ]


def listen(handler: Handler) -> dict[signal.Signals, Any]:
    """Have a handler called at what is heeded; only a process's main thread may ask for it.

    Returns:
        The handlers that there were, for `give_back`.
    """
    hear = without_terminal(handler)
    return {number: signal.signal(number, hear) for number in handling()}


def without_terminal(handler: Handler) -> Handler:
    """A handler that prints nowhere where the terminal has ended."""

    def hear(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            detach_terminal()
        handler(number, frame)

    return hear


def restore_handlers(handlers: Mapping[Any, Any]) -> None:
    """Let signals do again what they did."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def received(handler: Handler) -> Iterator[Mapping[signal.Signals, Any]]:
    """Listen within a block.

    Yields:
        The handlers that there were.
    """
    _raised.clear()
    before = listen(handler)
    try:
        yield before
    finally:
        restore_handlers(before)
        _raised.clear()


def detach_terminal() -> None:
    """Print nowhere instead of to a terminal that is gone, where each word would be an error; files stay."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        with suppress(OSError):  # it was closed before
            if not stat.S_ISREG(os.fstat(output).st_mode):
                os.dup2(nowhere, output)
    os.close(nowhere)
