"""Detection of other programs that use the cores of a training run.

The threads of a run wait for one another many times in each step, and libgomp's threads spin while they wait. If
another program uses one of the cores, they spin until it pauses. On two cores, a run with two threads reached
8,014 tokens/s alone, and 939 and 910 beside another such run; two runs with one thread each reached 3,803 and 3,842.
"""

import os
from contextlib import suppress
from pathlib import Path

import torch

# Nanoseconds on a core, nanoseconds ready to run without one, and time slices of the calling thread.
SCHEDSTAT = Path("/proc/thread-self/schedstat")


def waited() -> float | None:
    """Return the seconds for which this thread was ready to run without a core; None except on Linux.

    Excludes waits for files or locks.
    """
    with suppress(OSError, ValueError, IndexError), SCHEDSTAT.open("rb", buffering=0) as file:
        return int(file.read().split()[1]) / 1e9
    return None


class Crowding:
    """A measurement of the share of time that a thread waits for a core, with one warning if it is too large.

    Args:
        seconds: wall time to measure, in seconds.
        share: share of that time from which the machine counts as crowded.
    """

    def __init__(self, seconds: float = 10.0, share: float = 0.25) -> None:
        self.seconds, self.share = seconds, share
        self.measured = self.lost = 0.0
        self._since: float | None = None
        self._warned = False

    def start(self) -> None:
        """Start measuring."""
        self._since = None if self._warned else waited()

    def stop(self, elapsed: float) -> None:
        """Stop measuring, after `elapsed` seconds."""
        if self._since is not None and (now := waited()) is not None:
            self.measured += elapsed
            self.lost += now - self._since
        self._since = None

    def warning(self) -> str | None:
        """Return a warning about the time since the last call, once per run; else None."""
        if self._warned or self.measured < self.seconds:
            return None
        share, self.measured, self.lost = self.lost / self.measured, 0.0, 0.0
        threads = torch.get_num_threads()
        if share < self.share or threads == 1:
            return None
        self._warned = True
        passive = "" if "OMP_WAIT_POLICY" in os.environ else ", or set OMP_WAIT_POLICY=passive"
        return (
            f"hardware.threads: other programs use this machine's cores, and training waited for one {share:.0%} of "
            f"the time; {threads} threads wait for one another as well, so try hardware.threads={threads // 2}{passive}"
        )
