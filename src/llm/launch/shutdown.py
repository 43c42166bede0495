"""Shutdown of a sweep, such as on Ctrl-C: running jobs save and end, and no other job starts.

If a worker of a process pool dies, all jobs of the pool end. So workers ignore signals: they poll a mark file, which
the main process writes, and signal their jobs. Without a pool, the process that waits for a job passes signals on.
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

# Environment variable with the path of the mark file, which has one byte for each signal received.
MARK = "LLM_SWEEP_STOP"
POLL = 0.1  # seconds between two checks
KILLING = 3  # number of signals after which a job is killed
NOTICE = b"\nstopping: running jobs save first; press Ctrl-C again to stop them immediately\n"

# Returns the number of signals received so far.
SignalCount = Callable[[], int]


@contextmanager
def mark_signals(mark: Path) -> Iterator[None]:
    """Write each signal to a mark file, and block signals in processes that are started within the block.

    Raises:
        Stopped: at the end of the block, if a signal was received.
    """
    received: list[int] = []

    def write_mark(number: int, frame: object) -> None:
        _print(NOTICE)
        received.append(number)
        with mark.open("ab") as file:
            file.write(b".")

    resource_tracker.ensure_running()  # started later by joblib, it would unblock this thread's signals
    is_over = Event()
    Thread(target=is_over.wait, daemon=True).start()  # receives the signals that this thread blocks
    before = signals.listen(write_mark)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, before)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signals.restore_handlers(before)
        is_over.set()
        mark.unlink(missing_ok=True)
    if received:
        raise signals.Stopped(received[0])


@contextmanager
def defer_signals() -> Iterator[SignalCount]:
    """Defer signals to the end of the block; then call their previous handlers and stop the sweep.

    In a worker of a pool, signals are ignored. Processes that start within the block inherit none of this.

    Yields:
        A function that returns the number of signals so far.

    Raises:
        KeyboardInterrupt: at the end of the block, if a signal was received outside of a pool.
    """
    received: list[int] = []
    mark = os.environ.get(MARK)

    def remember(number: int, frame: object) -> None:
        received.append(number)
        if mark is None:
            _print(NOTICE)

    with _handling(remember) as before:
        yield (lambda: len(received)) if mark is None else (lambda: _size(Path(mark)))
    if mark is None and received:
        for number in received:
            if callable(handler := before[number]):
                handler(number, None)
        raise KeyboardInterrupt


@contextmanager
def _handling(handler: Callable[[int, object], None]) -> Iterator[dict[int, object]]:
    """Call a handler on signals that are not ignored. Child processes inherit none of this.

    Yields:
        The previous handlers.
    """
    before: dict[int, object] = {number: signal.getsignal(number) for number in signals.STOPPING}
    handle = signals.without_terminal(handler)

    def handle_unless_ignored(number: int, frame: object) -> None:
        if before[number] != signal.SIG_IGN:
            handle(number, frame)

    for number in before:
        signal.signal(number, handle_unless_ignored)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, before)
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signals.restore_handlers(before)


def wait(process: subprocess.Popen, signals_received: SignalCount) -> int:
    """Wait for a process in its own session, pass signals on to it, and return its exit status."""
    sent = 0
    while True:
        try:
            return process.wait(POLL)
        except subprocess.TimeoutExpired:
            for number in range(sent + 1, (sent := signals_received()) + 1):
                process.send_signal(signal.SIGINT if number < KILLING else signal.SIGKILL)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _print(text: bytes) -> None:
    os.write(2, text)  # the signal may have interrupted a call of print, which is not reentrant
