"""Signals that stop a process reach all handlers; ignored signals do not."""

import os
import pty
import signal
import time

import pytest

from llm import signals


@pytest.mark.parametrize("number", signals.STOPPING)
def test_signals_are_handled_only_within_the_block(number, monkeypatch):
    monkeypatch.setattr(signals, "detach_terminal", lambda: None)
    before = signal.signal(number, signal.SIG_DFL)  # under nohup, SIGHUP is ignored
    received: list[int] = []
    try:
        with signals.received(lambda number, frame: received.append(number)):
            signal.raise_signal(number)
        assert received == [number]
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_signals_ignored_by_nohup_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.received(lambda number, frame: pytest.fail("the signal was not ignored")):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_background_job_of_a_script_receives_ctrl_c():
    before, received = signal.signal(signal.SIGINT, signal.SIG_IGN), []
    try:
        with signals.received(lambda number, frame: received.append(number)):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert received == [signal.SIGINT]


def test_process_keeps_running_after_its_terminal_closes():
    """Writing to a closed terminal would raise an error and end the process before it saves."""
    child, terminal = pty.fork()
    if child == 0:
        received: list[int] = []
        signals.listen(lambda number, frame: received.append(number))
        os.write(1, b"on")
        while not received:
            time.sleep(0.01)
        try:
            os.write(1, b"saving")
            os.write(2, b"saving")
        except OSError:
            os._exit(1)
        os._exit(0)
    assert os.read(terminal, 2) == b"on"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
