"""Ctrl-C in a sweep: jobs that run save and end, and no other begins, wherever a launcher has put them.

A pool breaks when one of its processes dies, and with it ends what the others do. So the processes of a
pool are deaf: the one with the terminal leaves a mark that they look for, and they tell their jobs.
Where there is no pool, who waits for a job hears the signals, of a scheduler's too, and hands them on.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Event, Thread

from llm import signals

# Where the mark of a pool's launcher is; its size in bytes is how often we were told.
MARK = "LLM_SWEEP_STOP"
POLL = 0.1  # seconds from one look to the next
KILLING = 3  # so many times told, a job is ended at once
NEWS = b"\nstopping: what runs is saved first; once more stops it at once\n"

# How often a job was told to stop so far.
Asked = Callable[[], int]


@contextmanager
def interruptible() -> Iterator[None]:
    """Let whatever ends this process do as Ctrl-C does."""
    with signals.received(signals.stop):
        yield


@contextmanager
def marking(mark: Path) -> Iterator[None]:
    """Leave a mark when told to stop, and start processes that do not hear it themselves.

    Raises:
        Stopped: at the end of the block, if a signal came.
    """
    told: list[int] = []

    def leave(number: int, frame: object) -> None:
        _say(NEWS)
        told.append(number)
        with mark.open("ab") as file:
            file.write(b".")

    resource_tracker.ensure_running()  # which joblib would do within, and so open this thread's ears
    is_over = Event()
    Thread(target=is_over.wait, daemon=True).start()  # with open ears, for this one's will be shut
    before = signals.listen(leave)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, before)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signals.restore_handlers(before)
        is_over.set()
        mark.unlink(missing_ok=True)
    if told:
        raise signals.Stopped(told[0])


@contextmanager
def deferred() -> Iterator[Asked]:
    """Put off what signals do until the block is left: what they did before it, and the sweep's end.

    In a process of a pool they do nothing at all. What is started within the block hears them anew.

    Yields:
        How often there was a reason to stop so far.

    Raises:
        KeyboardInterrupt: at the end of the block, outside of a pool, if there was one.
    """
    received: list[int] = []
    mark = os.environ.get(MARK)

    def remember(number: int, frame: object) -> None:
        received.append(number)
        if mark is None:
            _say(NEWS)

    with _heard(remember) as before:
        yield (lambda: len(received)) if mark is None else (lambda: _size(Path(mark)))
    if mark is None and received:
        for number in received:
            if callable(handler := before[number]):
                handler(number, None)
        raise KeyboardInterrupt


@contextmanager
def _heard(handler: Callable[[int, object], None]) -> Iterator[dict[int, object]]:
    """Call a handler of signals that are heeded; what is started meanwhile inherits nothing of it.

    Yields:
        The handlers that there were.
    """
    before: dict[int, object] = {number: signal.getsignal(number) for number in signals.STOPPING}
    hear = signals.without_terminal(handler)

    def heed(number: int, frame: object) -> None:
        if before[number] != signal.SIG_IGN:
            hear(number, frame)

    for number in before:
        signal.signal(number, heed)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, before)
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signals.restore_handlers(before)


def wait(process: subprocess.Popen, signals_received: Asked) -> int:
    """The exit status of a process that stands in a session of its own; what is asked for reaches it."""
    told = 0
    while True:
        try:
            return process.wait(POLL)
        except subprocess.TimeoutExpired:
            for number in range(told + 1, (told := signals_received()) + 1):
                process.send_signal(signal.SIGINT if number < KILLING else signal.SIGKILL)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _say(text: bytes) -> None:
    os.write(2, text)  # a handler may have come into the middle of a print
