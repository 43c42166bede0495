"""The warning about a busy machine appears only if threads wait for a core."""

import threading
import time

import pytest
import torch

from llm.callbacks import crowding
from llm.callbacks.crowding import Crowding, waited


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the thread has waited, as the kernel reports them, with two threads per process."""
    now = {"waited": 0.0}
    monkeypatch.setattr(crowding, "waited", lambda: now["waited"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    return now


def measure(crowding, clock, lost, elapsed=6.0):
    crowding.start()
    clock["waited"] += lost
    crowding.stop(elapsed)
    return crowding.warning()


def test_a_crowded_machine_is_reported_once(clock):
    watch = Crowding()
    assert measure(watch, clock, lost=3.0) is None, "six seconds are too short a measurement"
    told = measure(watch, clock, lost=3.0)
    assert told == (
        "hardware.threads: other programs use this machine's cores, and training waited for one 50% of the time; "
        "2 threads wait for one another as well, so try hardware.threads=1, or set OMP_WAIT_POLICY=passive"
    )
    assert all(measure(watch, clock, lost=6.0) is None for _ in range(5))


def test_a_quiet_machine_is_not_reported(clock, monkeypatch):
    watch = Crowding()
    assert all(measure(watch, clock, lost=0.3) is None for _ in range(5))
    clock["waited"] += 100  # during a validation, which does not count
    assert measure(watch, clock, lost=0.0) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert all(measure(watch, clock, lost=5.0) is None for _ in range(5)), (
        "there is nothing to advise"
    )
    monkeypatch.setattr(crowding, "waited", lambda: None)
    assert all(measure(watch, clock, lost=5.0) is None for _ in range(5)), (
        "not every system reports the wait"
    )


def test_a_passive_wait_policy_is_not_advised_again(clock, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert "OMP_WAIT_POLICY" not in (
        measure(Crowding(), clock, lost=6.0, elapsed=12.0) or "OMP_WAIT_POLICY"
    )


@pytest.mark.skipif(waited() is None, reason="this system does not report how long a thread waits")
def test_sleeping_thread_does_not_count_as_waiting():
    """A thread that waits for a file, a lock or a download needs no core."""
    before = waited()
    threading.Event().wait(0.5)
    time.sleep(0.5)
    after = waited()
    assert before is not None
    assert after is not None
    assert after - before < 0.5, "the thread slept for one second"
