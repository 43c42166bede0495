"""Which GPUs a job of a sweep gets, where several jobs run at once on one machine.

A GPU has slots, as many as it takes for all jobs to run at once; each slot is a locked file in a folder of
the user's, so that jobs of other sweeps are reckoned with, and a process that dies frees what it held. Cores
need no places: joblib's workers hand each job its share (OMP_NUM_THREADS).
"""

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from llm.config.errors import ConfigError

POOL = "JoblibLauncher"
WAITING = "OMP_WAIT_POLICY"
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL = 0.5  # seconds from one try to the next


def gpus() -> list[str]:
    """This machine's GPUs, or those that the user left visible, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:  # CUDA stops reading at the first that is none
        names = (name.strip() for name in visible.split(","))
        return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    count = sum(line.startswith("GPU ") for line in listed.splitlines())
    return [str(number) for number in range(count)]


def jobs_at_once(launcher: Mapping[str, Any]) -> int:
    """Return how many jobs a launcher of joblib's runs at once: one for each GPU, unless it is given a number."""
    number = int(launcher["n_jobs"])
    return (len(gpus()) or number) if number == -1 else number


@contextmanager
def holding_gpus(
    hardware: DictConfig, launcher: Mapping[str, Any], is_over: Callable[[], Any]
) -> Iterator[dict[str, str]]:
    """Hold a job's GPUs while the block lasts, waiting for them first.

    Args:
        hardware: that of the job.
        launcher: Hydra's; one that runs a single job at a time, or asks a scheduler, needs no places.
        is_over: whether to wait no longer.

    Yields:
        What the environment of the job's process says of it.
    """
    is_pooled = str(launcher.get("_target_")).endswith(POOL)
    devices = gpus() if is_pooled and _is_for_gpus(hardware) else []
    if not devices:  # jobs of a pool share the cores, as joblib divides them
        yield patience(int(os.environ.get("OMP_NUM_THREADS") or 1)) if is_pooled else {}
        return
    at_once = launcher["n_jobs"] if launcher["n_jobs"] > 0 else len(devices)
    wanted = min(_wanted(hardware, devices, at_once), len(devices))  # who wants more will say so
    slots = -(-at_once // len(devices))
    with held(devices, wanted, slots, is_over) as names:
        yield {VISIBLE: ",".join(names)}


@contextmanager
def held(
    devices: Sequence[str], wanted: int, slots: int, is_over: Callable[[], Any]
) -> Iterator[list[str]]:
    """Hold a slot of each of so many GPUs, the emptiest ones, as soon as so many are free.

    Args:
        devices: names of all.
        wanted: how many.
        slots: how many jobs may share one.
        is_over: whether to wait no longer; then nothing is held.

    Raises:
        ConfigError: another user made the folder in which slots are locked.
    """
    folder = _own_folder()
    locks: dict[str, FileLock] = {}
    while not is_over():
        with FileLock(folder / "gpus.lock"):  # two that take one each would both wait for another
            locks = _locks(folder, devices, wanted, slots)
        if locks:
            break
        time.sleep(POLL)
    try:
        yield [device for device in devices if device in locks]
    finally:
        for lock in locks.values():
            lock.release()


def _own_folder() -> Path:
    """Where this user's processes lock slots; anybody may make folders in /tmp, under any name."""
    folder = Path(tempfile.gettempdir()) / f"llm-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise ConfigError(f"{folder} is another user's: set TMPDIR to a folder of your own")
    return folder


def _locks(folder: Path, devices: Sequence[str], wanted: int, slots: int) -> dict[str, FileLock]:
    """Locked slots by their GPU; none where too few are free."""
    locks: dict[str, FileLock] = {}
    for slot, device in itertools.product(range(slots), devices):
        if len(locks) < wanted and device not in locks:
            lock = FileLock(folder / f"gpu-{quote(device, safe='')}.{slot}.lock")  # MIG has slashes
            with suppress(Timeout):
                lock.acquire(blocking=False)
                locks[device] = lock
    if len(locks) < wanted:
        for lock in locks.values():
            lock.release()
        return {}
    return locks


def _is_for_gpus(hardware: DictConfig) -> bool:
    return hardware.accelerator in ("auto", "gpu", "cuda")


def _wanted(hardware: DictConfig, devices: Sequence[str], at_once: int) -> int:
    """How many GPUs a job asks for; `auto` is an even share."""
    if hardware.devices == "auto":
        return max(1, len(devices) // at_once)
    return hardware.devices


def patience(threads: int) -> dict[str, str]:
    """What lets the threads of processes that share a CPU wait without using a core, as environment variables.

    By default they spin, which is faster for a process that has its cores to itself. What the user has set stays.

    Args:
        threads: of each process; one has nobody to wait for.
    """
    if threads == 1 or WAITING in os.environ:
        return {}
    return {WAITING: "passive"}
