"""Whether other programs take the cores that a training run is ready to use.

Threads of one run wait for one another many times a step, and libgomp's spin while they wait. Where another program
has one of the cores, the others spin for a thread that is not running: two trainings at once, with two threads each on
two cores, fell from 8,014 tokens/s to 939 and 910, and had 3,803 and 3,842 with one thread each.
"""

import os
from contextlib import suppress
from pathlib import Path

import torch

# Nanoseconds on a core, nanoseconds ready to run without one, time slices: of the thread that asks.
SCHEDSTAT = Path("/proc/thread-self/schedstat")


def waited() -> float | None:
    """Seconds that this thread was ready to run and had no core; None where the system does not say (Linux does).

    A thread that sleeps, for a file or a lock, is not ready to run: slow disks do not count.
    """
    with suppress(OSError, ValueError, IndexError), SCHEDSTAT.open("rb", buffering=0) as file:
        return int(file.read().split()[1]) / 1e9
    return None


class Crowding:
    """Adds up how long a thread waited for a core, and tells once that it was too long.

    Args:
        seconds: how long to look, on the clock.
        share: of that time, from which the machine is called crowded.
    """

    def __init__(self, seconds: float = 10.0, share: float = 0.25) -> None:
        self.seconds, self.share = seconds, share
        self.looked = self.lost = 0.0
        self._since: float | None = None
        self._told = False

    def start(self) -> None:
        """Look from here on."""
        self._since = None if self._told else waited()

    def stop(self, elapsed: float) -> None:
        """Look no longer, after so many seconds."""
        if self._since is not None and (now := waited()) is not None:
            self.looked += elapsed
            self.lost += now - self._since
        self._since = None

    def tell(self) -> str | None:
        """What to say of the time since it was last asked, once in a run; None if there is nothing to say."""
        if self._told or self.looked < self.seconds:
            return None
        share, self.looked, self.lost = self.lost / self.looked, 0.0, 0.0
        threads = torch.get_num_threads()
        if share < self.share or threads == 1:
            return None
        self._told = True
        passive = "" if "OMP_WAIT_POLICY" in os.environ else ", or set OMP_WAIT_POLICY=passive"
        return (
            f"hardware.threads: other programs use this machine's cores, and training waited for one {share:.0%} of "
            f"the time; {threads} threads wait for one another as well, so try hardware.threads={threads // 2}{passive}"
        )
