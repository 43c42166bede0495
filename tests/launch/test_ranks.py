"""Ranks start and end together, and the error of the rank that failed first is reported."""

import json
import os
import random
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from forked import llm
from omegaconf import OmegaConf

from llm.config.build import build
from llm.config.errors import ConfigError
from llm.hardware import Hardware
from llm.launch.ranks import (
    Monitor,
    Rank,
    adopt_slurm,
    explain_failure,
    place_hardware,
    this_node,
    waiting_variables,
)
from llm.parallel.ddp import DDP
from llm.runs import Run


class Ended(Rank):
    """The process of a rank that has ended."""

    def __init__(self, number: int, status: int, report: dict | None, log: Path) -> None:
        self.number, self.log = number, log
        self._status, self._report = status, report or {}

    @property
    def status(self) -> int:
        return self._status

    def report(self) -> dict:
        return self._report


@pytest.fixture
def ended(tmp_path: Path):
    """ended((status, report), …): return ranks that ended with these."""
    log = tmp_path / "log"
    log.write_text("last words\n")
    return lambda *how: [Ended(number, *each, log) for number, each in enumerate(how)]


def failed(at: float, message: str, is_mistake: bool = False) -> dict:
    trace = [] if is_mistake else ["Traceback"]
    return {
        "time": at,
        "message": message,
        "traceback": trace,
        "is_mistake": is_mistake,
        "status": 1,
    }


def test_first_failure_is_reported(ended):
    lost, bug = failed(2.0, "RuntimeError: connection lost"), failed(1.0, "KeyError: 'x'")
    failure = explain_failure(ended((1, lost), (1, bug)), [0, 1])
    assert failure.message == "rank 1 failed: KeyError: 'x'"
    assert "connection lost" not in failure.text
    assert failure.text.startswith("Traceback")


def test_killed_rank_is_reported_although_other_ranks_failed(ended):
    failure = explain_failure(
        ended((1, failed(1.0, "RuntimeError: connection lost")), (-9, None)), [0, 1]
    )
    assert failure.message.startswith("rank 1 was killed by SIGKILL")
    assert failure.status == 128 + signal.SIGKILL
    assert "last words" in failure.text


def test_user_error_is_reported_without_a_traceback(ended):
    failure = explain_failure(
        ended((1, failed(1.0, "data.path: no such file", is_mistake=True))), [0]
    )
    assert failure.text == "data.path: no such file"


def test_rank_killed_by_the_launcher_is_not_reported(ended):
    failure = explain_failure(ended((-9, None), (1, failed(1.0, "KeyError: 'x'"))), [1])
    assert failure.message == "rank 1 failed: KeyError: 'x'"


@pytest.mark.parametrize(
    ("statuses", "num_signals", "failed"),
    [((143, 130, 0), 1, False), ((143, 1), 0, True), ((143, 1), 1, False), ((1, 1), 1, True)],
)
def test_ranks_stopped_by_a_signal_have_not_failed(ended, tmp_path, statuses, num_signals, failed):
    """After the first rank has stopped, the errors of the others about lost connections are not failures."""
    watch = Monitor(ended(*((status, None) for status in statuses)), tmp_path)
    watch.signals += [signal.SIGTERM] * num_signals
    assert (bool(watch._failed()) and not watch._was_stopped()) == failed


def test_machines_read_their_number_from_the_environment(monkeypatch):
    monkeypatch.delenv("NODE_RANK", raising=False)
    with pytest.raises(
        ConfigError, match=r"num_nodes: 2 machines need NODE_RANK.*torchrun or srun"
    ):
        this_node(2)
    for name, value in {"NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert this_node(2) == (1, "first", 29500)


@pytest.fixture
def slurm(monkeypatch):
    """slurm(TASKS_PER_NODE): simulate task 5 of 8 that srun started on two machines."""
    values = {
        "STEP_NUM_TASKS": "8",
        "STEP_NUM_NODES": "2",
        "PROCID": "5",
        "LOCALID": "1",
        "NODEID": "1",
        "JOB_ID": "12345",
        "STEP_NODELIST": "node[3-4]",
    }
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores what is set below
    for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def make(tasks_per_node: str) -> None:
        values["STEP_TASKS_PER_NODE"] = tasks_per_node
        for name, value in values.items():
            monkeypatch.setenv(f"SLURM_{name}", value)

    return make


def test_variables_of_srun_become_those_of_torchrun(slurm):
    slurm("4(x2)")
    adopt_slurm()
    found = {
        name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    }
    assert list(found.values()) == ["5", "1", "8", "4"]
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("node3", "17345")


def test_different_numbers_of_tasks_on_machines_are_refused(slurm):
    slurm("5,3")
    with pytest.raises(
        ConfigError, match=r"8 tasks are unevenly distributed on 2 machines \(5,3\); .*--ntasks-per"
    ):
        adopt_slurm()
    assert "TORCHELASTIC_RUN_ID" not in os.environ


def test_batch_that_ranks_cannot_divide_is_refused():
    strategy = {"_target_": "llm.parallel.ddp.DDP"}
    hardware = {
        "_target_": "llm.hardware.Hardware",
        "accelerator": "cpu",
        "devices": 4,
        "strategy": strategy,
    }
    config = OmegaConf.create({"data": {"batch_size": 6}})
    with pytest.raises(ConfigError, match=r"data\.batch_size: 6 rows .* multiple of 4, such as 8"):
        place_hardware(build(hardware), config)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_ranks_get_signals_once_and_end_together(tmp_path, monkeypatch, number):
    """Run the launcher with two small programs as ranks."""
    monkeypatch.setattr("llm.signals.detach_terminal", lambda: None)
    code = (
        f"import signal, sys, time\nsignal.signal({number}, lambda *_: sys.exit(130))\n"
        "print('on')\ntime.sleep(60)"
    )
    environment = {**os.environ, "LLM_RANK_REPORTS": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    ranks = [Rank(number, ["python3", "-c", code], environment) for number in (1, 2)]
    while not all("on" in rank.log.read_text() for rank in ranks):
        time.sleep(0.01)
    threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
    assert Monitor(ranks, tmp_path).wait() == 130
    assert [rank.status for rank in ranks] == [130, 130]


@pytest.mark.slow
def test_killed_rank_ends_all_and_the_same_command_resumes(tmp_path):
    draw = random.Random(0)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(draw.choices("abcdef", k=9)) for _ in range(300)), "utf-8")
    words = [
        *(
            "train",
            "size=nano",
            "size.dim=32",
            "size.context_length=16",
            "tokenizer=byte",
            "name=run",
        ),
        *("data=text", f"data.path={text}", "data.batch_size=4", "optimizer=adamw"),
        *(
            "trainer.max_steps=120",
            "trainer.val_every=20",
            "callbacks.samples=null",
            "callbacks.picture=null",
        ),
        *(
            "hardware=ddp",
            "hardware.accelerator=cpu",
            "hardware.devices=2",
            "hardware.precision=32",
        ),
        f"output_dir={tmp_path}",
    ]
    environment = {
        **os.environ,
        "LLM_CACHE": str(tmp_path / "cache"),
        "RANK": "7",
        "LOCAL_RANK": "3",
    }
    run, out, err = Run(tmp_path / "pretraining" / "run"), tmp_path / "out", tmp_path / "err"
    ended: list[int] = []
    forks = {"module": "forked_ranks"}
    launcher = threading.Thread(
        target=lambda: ended.append(llm(words, out, err, environment, **forks))
    )
    launcher.start()
    while not run.last.is_file():
        assert launcher.is_alive(), err.read_text()
        time.sleep(0.02)
    first = psutil.Process(json.loads((run.path / "run.json").read_text())["process"])
    (other,) = [process for process in first.parent().children() if process != first]
    other.kill()
    launcher.join(60)
    assert not first.is_running()
    assert ended == [128 + signal.SIGKILL]
    (line,) = err.read_text().splitlines()
    record = Run(run.path).record
    assert record["status"] == "failed"
    assert line == record["error"]
    assert line.startswith("rank 1 was killed by SIGKILL")

    assert llm(words, out, err, environment, **forks) == 0, err.read_text()
    assert Run(run.path).record["status"] == "done"
    assert "(resumes)" in out.read_text()


@pytest.mark.slow
def test_launchers_on_two_machines_make_one_run(tmp_path):
    """Both launchers run here with one rank each; only the first one writes and prints."""
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 100, "utf-8")
    words = [
        *("train", "size=nano", "size.dim=32", "size.context_length=16", "tokenizer=byte"),
        *("data=text", f"data.path={text}", "data.batch_size=4", "name=run"),
        *(
            "trainer.max_steps=2",
            "callbacks.samples=null",
            "callbacks.picture=null",
            f"output_dir={tmp_path}",
        ),
        *("hardware=ddp", "hardware.accelerator=cpu", "hardware.precision=32"),
        *("hardware.devices=1", "hardware.num_nodes=2"),
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ended: dict[int, int] = {}

    def launch(node: int) -> None:
        environment = {**os.environ, **meeting, "NODE_RANK": str(node)}
        environment |= {"LLM_CACHE": str(tmp_path / "cache")}
        out, err = tmp_path / f"out{node}", tmp_path / f"err{node}"
        ended[node] = llm(words, out, err, environment)

    launchers = [threading.Thread(target=launch, args=(node,)) for node in (1, 0)]
    for each in launchers:
        each.start()
    for each in launchers:
        each.join(120)
    assert ended == {0: 0, 1: 0}, (tmp_path / "err0").read_text()
    record = Run(tmp_path / "pretraining" / "run").record
    assert (record["status"], record["devices"]) == ("done", 2)
    assert "2 machines × 1 × cpu, DDP" in (tmp_path / "out0").read_text()
    assert (tmp_path / "out1").read_text() == ""


def test_ranks_that_share_a_cpu_wait_passively(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    two = Hardware("cpu", devices=2, strategy=DDP(), precision=32, threads=3)
    assert waiting_variables(two) == {"OMP_WAIT_POLICY": "passive"}
    assert waiting_variables(replace(two, threads=1)) == {}
    assert waiting_variables(replace(two, devices=1, strategy=None)) == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert waiting_variables(replace(two, threads=None)) == {}
