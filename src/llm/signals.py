"""The signals by which a process is asked to stop, and how they are heard: the same ones everywhere.

Ctrl-C, what a scheduler or `kill` sends, and the end of the terminal. The last one takes away where the
process prints to: from then on that goes nowhere, so that what is said while a run is saved does no harm.
"""

import os
import signal
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Handler = Callable[[int, Any], Any]


def heeded() -> list[signal.Signals]:
    """All but the end of the terminal where nohup has told this process to ignore it.

    Ctrl-C is heeded even by a script's background job, which ignores it by birth: a sweep and a launcher
    of ranks tell their processes by it.
    """
    is_deaf = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOPPING if number != signal.SIGHUP or not is_deaf]


def listen(handler: Handler) -> dict[signal.Signals, Any]:
    """Have a handler called at what is heeded; only a process's main thread may ask for it.

    Returns:
        The handlers that there were, for `give_back`.
    """
    hear = without_terminal(handler)
    return {number: signal.signal(number, hear) for number in heeded()}


def without_terminal(handler: Handler) -> Handler:
    """A handler that prints nowhere where the terminal has ended."""

    def hear(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            let_go_of_terminal()
        handler(number, frame)

    return hear


def give_back(handlers: Mapping[Any, Any]) -> None:
    """Let signals do again what they did."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def heard(handler: Handler) -> Iterator[Mapping[signal.Signals, Any]]:
    """Listen within a block.

    Yields:
        The handlers that there were.
    """
    before = listen(handler)
    try:
        yield before
    finally:
        give_back(before)


def let_go_of_terminal() -> None:
    """Print nowhere instead of to a terminal that is gone, where each word would be an error; files stay."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        with suppress(OSError):  # it was closed before
            if not stat.S_ISREG(os.fstat(output).st_mode):
                os.dup2(nowhere, output)
    os.close(nowhere)
