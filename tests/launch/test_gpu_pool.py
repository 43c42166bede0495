"""The GPU pool: no two jobs on one slot, and slots of dead jobs become free."""

import multiprocessing
import os
import signal
import tempfile
import threading
import time

import pytest
from omegaconf import OmegaConf

from llm.config.errors import ConfigError
from llm.launch import gpu_pool

JOBLIB = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"}
FORK = multiprocessing.get_context("fork")


def never() -> bool:
    return False


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Make this process see four GPUs."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(gpu_pool, "POLL", 0.01)
    monkeypatch.setenv(gpu_pool.VISIBLE, "0,1,2,3")


def place(devices: int | str = 1, accelerator: str = "auto", n_jobs: int = 2, is_over=never):
    hardware = OmegaConf.create({"devices": devices, "accelerator": accelerator})
    return gpu_pool.hold_gpus(hardware, {**JOBLIB, "n_jobs": n_jobs}, is_over)


def names(environment: dict[str, str]) -> list[str]:
    return environment[gpu_pool.VISIBLE].split(",")


def test_jobs_at_once_get_different_gpus():
    with place(devices=2) as first, place(devices=2) as second:
        assert sorted(names(first) + names(second)) == ["0", "1", "2", "3"]
    with place(devices="auto", n_jobs=4) as share:
        assert len(names(share)) == 1
    with place(devices="auto", n_jobs=1) as all_of_them:
        assert len(names(all_of_them)) == 4
    with place(devices=8) as too_many:
        assert len(names(too_many)) == 4, "the job itself reports the error"


def test_more_jobs_than_gpus_share_them_evenly():
    with place(n_jobs=8) as a, place(n_jobs=8) as b, place(n_jobs=8) as c, place(n_jobs=8) as d:
        assert len({names(each)[0] for each in (a, b, c, d)}) == 4
        with place(n_jobs=8) as e:
            assert names(e) == names(a)


def test_job_waits_for_free_gpus_until_the_sweep_ends():
    placed, looks = [], threading.Semaphore(0)

    def looked() -> bool:
        looks.release()
        return False

    def wait() -> None:
        with place(devices=3, is_over=looked) as environment:
            placed.append(environment)

    with place(devices=2):
        thread = threading.Thread(target=wait)
        thread.start()
        for _ in range(3):  # at the third call of `is_over` two attempts have failed
            assert looks.acquire(timeout=60)
        assert not placed
        with place(devices=2):  # the waiting job holds none of the free GPUs
            pass
        ends = iter([False, True])
        with place(devices=3, is_over=lambda: next(ends)) as nothing:
            assert names(nothing) == [""]
        assert not placed
    thread.join(60)
    assert len(names(placed[0])) == 3


def _hold(pipe, most: int, tries=None) -> None:
    def tried() -> bool:
        if tries:
            tries.release()
        return False

    with place(n_jobs=4, is_over=tried) as environment:
        pipe.send(environment)
        time.sleep(most)


def test_processes_get_different_slots_and_a_killed_one_frees_its_slot():
    ours, theirs = FORK.Pipe()
    jobs = [FORK.Process(target=_hold, args=(theirs, 60)) for _ in range(4)]
    for job in jobs:
        job.start()
    held = [names(ours.recv())[0] for _ in jobs]
    assert sorted(held) == ["0", "1", "2", "3"]
    tries = FORK.Semaphore(0)
    fifth = FORK.Process(target=_hold, args=(theirs, 0, tries))
    fifth.start()
    for _ in range(3):  # at the third call of `is_over` two attempts have failed
        assert tries.acquire(timeout=60)
    assert not ours.poll()
    os.kill(jobs[2].pid or 0, signal.SIGKILL)
    assert names(ours.recv())[0] in held
    for job in (*jobs, fifth):
        job.kill()
        job.join()


def test_gpu_name_may_contain_slashes(monkeypatch):
    """Older drivers use such names for a MIG instance, a part of a GPU."""
    name = "MIG-GPU-8f6e/1/0"
    monkeypatch.setenv(gpu_pool.VISIBLE, name)
    with place(n_jobs=1) as environment:
        assert names(environment) == [name]


def test_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    with place():
        pass
    ours = os.getuid()
    (tmp_path / f"llm-{ours}").rename(tmp_path / f"llm-{ours + 1}")
    monkeypatch.setattr(os, "getuid", lambda: ours + 1)  # so the folder belongs to another user
    with pytest.raises(ConfigError, match="belongs to another user; set TMPDIR"), place():
        pass


@pytest.mark.parametrize(("visible", "found"), [("2,5", ["2", "5"]), ("", []), ("1,-1,2", ["1"])])
def test_only_visible_gpus_are_used(monkeypatch, visible, found):
    monkeypatch.setenv(gpu_pool.VISIBLE, visible)
    assert gpu_pool.gpus() == found


def test_gpus_are_counted_by_the_driver(monkeypatch, tmp_path):
    monkeypatch.delenv(gpu_pool.VISIBLE)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_pool.gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)'\necho 'GPU 1: A (UUID: GPU-2)'\n")
    tool.chmod(0o755)
    assert gpu_pool.gpus() == ["0", "1"]
    assert gpu_pool.jobs_at_once({**JOBLIB, "n_jobs": -1}) == 2
    assert gpu_pool.jobs_at_once({**JOBLIB, "n_jobs": 3}) == 3


def test_job_on_the_cpu_holds_no_gpu():
    with place(accelerator="cpu") as environment:
        assert environment == {}
    hardware = OmegaConf.create({"devices": 1, "accelerator": "auto"})
    for launcher in ("BasicLauncher", "SlurmLauncher"):
        with gpu_pool.hold_gpus(hardware, {"_target_": f"x.{launcher}"}, never) as environment:
            assert environment == {}


def test_jobs_that_share_a_cpu_wait_passively(monkeypatch):
    monkeypatch.delenv(gpu_pool.WAITING, raising=False)
    for threads, expected in (("4", {"OMP_WAIT_POLICY": "passive"}), ("1", {})):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)  # as joblib divides the cores
        with place(accelerator="cpu") as environment:
            assert environment == expected
    hardware = OmegaConf.create({"devices": 1, "accelerator": "cpu"})
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with gpu_pool.hold_gpus(hardware, {"_target_": "x.BasicLauncher"}, never) as environment:
        assert environment == {}, "a single job does not share the cores"
    monkeypatch.setenv(gpu_pool.WAITING, "active")
    with place(accelerator="cpu") as environment:
        assert environment == {}, "a variable that the user has set is kept"
