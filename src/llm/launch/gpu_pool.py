"""Assignment of GPUs to jobs of a sweep that run at the same time on one machine.

Each GPU has enough slots for all simultaneous jobs of a sweep to run. A slot is a locked file in a folder of the user:
jobs of other sweeps count too, and a process that dies releases its slots. Cores have no slots: joblib limits the
threads of each job with OMP_NUM_THREADS.
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
POLL = 0.5  # seconds between two attempts


def gpus() -> list[str]:
    """Return the names of the visible GPUs, as CUDA_VISIBLE_DEVICES lists them."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:  # CUDA stops reading at the first invalid name
        names = (name.strip() for name in visible.split(","))
        return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    count = sum(line.startswith("GPU ") for line in listed.splitlines())
    return [str(number) for number in range(count)]


def jobs_at_once(launcher: Mapping[str, Any]) -> int:
    """Return the number of simultaneous jobs of a joblib launcher: `n_jobs`, or for -1 one for each GPU."""
    number = int(launcher["n_jobs"])
    return (len(gpus()) or number) if number == -1 else number


@contextmanager
def hold_gpus(
    hardware: DictConfig, launcher: Mapping[str, Any], is_over: Callable[[], Any]
) -> Iterator[dict[str, str]]:
    """Wait for a job's GPUs, and hold them within a block.

    Args:
        hardware: the hardware of the job.
        launcher: Hydra's launcher. Only joblib's needs slots: others run one job at a time or use a scheduler.
        is_over: whether to stop waiting.

    Yields:
        Environment variables for the job's process.
    """
    is_pooled = str(launcher.get("_target_")).endswith(POOL)
    is_for_gpus = hardware.accelerator in ("auto", "gpu", "cuda")
    devices = gpus() if is_pooled and is_for_gpus else []
    if not devices:  # jobs of a pool share the cores, which joblib divides
        yield passive_waiting(int(os.environ.get("OMP_NUM_THREADS") or 1)) if is_pooled else {}
        return
    at_once = launcher["n_jobs"] if launcher["n_jobs"] > 0 else len(devices)
    share = max(1, len(devices) // at_once)
    wanted = share if hardware.devices == "auto" else hardware.devices
    wanted = min(wanted, len(devices))  # a job that needs more fails with its own error
    slots = -(-at_once // len(devices))
    with hold_slots(devices, wanted, slots, is_over) as names:
        yield {VISIBLE: ",".join(names)}


@contextmanager
def hold_slots(
    devices: Sequence[str], wanted: int, slots: int, is_over: Callable[[], Any]
) -> Iterator[list[str]]:
    """Wait for free GPUs, and hold one slot of each of the least used ones within a block.

    Args:
        devices: names of all GPUs.
        wanted: number of GPUs to hold.
        slots: number of jobs that may share a GPU.
        is_over: whether to stop waiting and hold nothing.

    Raises:
        ConfigError: the folder of the locks belongs to another user.
    """
    folder = _own_folder()
    locks: dict[str, FileLock] = {}
    while not is_over():
        # Two jobs that each take one of two GPUs would deadlock.
        with FileLock(folder / "gpus.lock"):
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
    """Return the folder of this user's locks. Its owner is checked, because any user can create folders in /tmp."""
    folder = Path(tempfile.gettempdir()) / f"llm-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise ConfigError(f"{folder}: belongs to another user; set TMPDIR to your own folder")
    return folder


def _locks(folder: Path, devices: Sequence[str], wanted: int, slots: int) -> dict[str, FileLock]:
    """Lock a slot of each of `wanted` GPUs, and return the locks by GPU; empty if too few are free."""
    locks: dict[str, FileLock] = {}
    for slot, device in itertools.product(range(slots), devices):
        if len(locks) < wanted and device not in locks:
            name = quote(device, safe="")  # MIG names contain /
            lock = FileLock(folder / f"gpu-{name}.{slot}.lock")
            with suppress(Timeout):
                lock.acquire(blocking=False)
                locks[device] = lock
    if len(locks) < wanted:
        for lock in locks.values():
            lock.release()
        return {}
    return locks


def passive_waiting(threads: int) -> dict[str, str]:
    """Return environment variables that make waiting OpenMP threads sleep, for processes that share a CPU.

    By default they spin, which is faster only if no other process uses the cores. A value that the user has set is
    kept. A single thread never waits, so nothing is set for it.
    """
    if threads == 1 or WAITING in os.environ:
        return {}
    return {WAITING: "passive"}
