"""The signals that stop a process, and their handling.

These are SIGINT (Ctrl-C), SIGTERM from a scheduler or `kill`, SIGUSR1 and SIGUSR2, by which some schedulers announce
the end of a job's time, and SIGHUP when the terminal is closed.
"""

import os
import signal
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Signals that are handled even if the parent process ignores them: sweeps and launchers of ranks stop their processes
# with SIGINT, which a background job of a script ignores.
ALWAYS = (signal.SIGINT, signal.SIGTERM)
# Exit statuses of a process that a signal stopped: 143 after SIGTERM, otherwise 130, as after Ctrl-C.
INTERRUPTED = (130, 143)

Handler = Callable[[int, Any], Any]

_raised: list[int] = []  # signals that `stop` has handled


class Stopped(KeyboardInterrupt):
    """The exception that a signal raises to stop this process.

    It is not a subclass of Exception, so that a sweep does not continue with its next job.
    """

    def __init__(self, number: int, how: str | None = None) -> None:
        super().__init__(how or signal.Signals(number).name)
        self.number = number


def stop(number: int, frame: object) -> None:
    """Handle a signal by raising `Stopped`."""
    _raised.append(number)
    raise Stopped(number)


def find_stop(error: BaseException) -> BaseException | None:
    """Return the exception of the signal that caused an error; None if no signal did.

    `Stopped` can be raised anywhere, also during the import of a library, which may then fail with another error.
    """
    if isinstance(error, KeyboardInterrupt):
        return error
    if not _raised or (isinstance(error, SystemExit) and error.code in INTERRUPTED):
        return None
    return Stopped(_raised[-1])


def number_of(error: BaseException) -> int:
    """Return the signal of an exception that stops a process; SIGINT by default."""
    return getattr(error, "number", signal.SIGINT)


def status_of(number: int) -> int:
    """Return the exit status of a process that a signal has stopped."""
    return 128 + (signal.SIGTERM if number == signal.SIGTERM else signal.SIGINT)


def listen(handler: Handler) -> dict[signal.Signals, Any]:
    """Install a handler, in the main thread, and return the previous ones for `restore_handlers`.

    Signals that this process ignores, such as SIGHUP under nohup, stay ignored, except for `ALWAYS`.
    """
    wrapped = without_terminal(handler)
    return {
        number: signal.signal(number, wrapped)
        for number in STOPPING
        if number in ALWAYS or signal.getsignal(number) != signal.SIG_IGN
    }


def without_terminal(handler: Handler) -> Handler:
    """Return a handler that first discards further output if the terminal was closed, where printing would fail."""

    def handle(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            detach_terminal()
        handler(number, frame)

    return handle


def restore_handlers(handlers: Mapping[Any, Any]) -> None:
    """Restore previous handlers."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def received(handler: Handler) -> Iterator[Mapping[signal.Signals, Any]]:
    """Install a handler within a block, and yield the previous ones."""
    _raised.clear()
    before = listen(handler)
    try:
        yield before
    finally:
        restore_handlers(before)
        _raised.clear()


def detach_terminal() -> None:
    """Discard further output, except to files."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        with suppress(OSError):  # already closed
            if not stat.S_ISREG(os.fstat(output).st_mode):
                os.dup2(nowhere, output)
    os.close(nowhere)
