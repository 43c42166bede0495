"""Sweeps: one process per job, and the same command repeats only what failed."""

import csv
import json
import math
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import forked
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from stand_in import SCRIPT

import llm.__main__ as command
from llm.comparison.table import Table
from llm.config.composition import check_composed
from llm.config.composition import compose as compose_command
from llm.config.fingerprint import fingerprint
from llm.config.loader import open_loader
from llm.launch import sweep_job, sweep_runner
from llm.runs import Run
from llm.sweeps import SETTLED, Sweep
from llm.weights.run import read_config

WORDS = [
    *("size=nano", "size.dim=32", "size.context_length=16", "tokenizer=byte", "data=text"),
    *(
        "hardware=cpu",
        "hardware.threads=1",
        "hardware.precision=32",
        "callbacks.samples=null",
        "callbacks.picture=null",
    ),
    *("model.dropout=0.1", "trainer.max_steps=4", "trainer.log_every=1", "trainer.val_every=2"),
]
# Prefixes of metrics that depend on the clock and the machine, and so differ between equal runs.
CLOCK = ("seconds", "tokens_per_second", "mfu", "peak_gib", "speed/", "memory/")


@pytest.fixture
def llm(text, tmp_path, monkeypatch, capsys):
    """llm("train", "-m", …): run a command in this process; return exit status, output and errors."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llm", *words])
        status = 0
        try:
            command.main()
        except SystemExit as error:
            status = int(error.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def stand_in(monkeypatch):
    """Replace the process of a job by a function of the job that returns an exit status; record the calls."""

    def install(function) -> list[int]:
        calls = []

        def run_process(job, words, environment, asked):
            calls.append(job.number)
            for ending in ("log", "err"):
                job.file(ending).touch()
            return function(job)

        monkeypatch.setattr(sweep_job, "run_process", run_process)
        return calls

    return install


def done(job) -> int:
    """Write the record of a successful job."""
    Run(job.directory).update(**job.identity, status="done", request=job.request)
    return 0


def only_sweep(folder: Path) -> Sweep:
    (file,) = (file for file in folder.glob("**/sweep.json") if "~" not in file.parent.name)
    return Sweep(file.parent)


def stable_rows(table: Path) -> list[dict[str, str]]:
    """Return the rows of a table without values that depend on the clock."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith(CLOCK)} for row in rows]


TRAP = """
import os, signal
from pathlib import Path
from lightning.pytorch.callbacks import Callback

class Trap(Callback):
    \"\"\"Once, in the third step: seed 1 is killed, seed 2 fails.\"\"\"

    def __init__(self, folder: str, seed: int):
        self.sprung, self.seed = Path(folder) / f"sprung{seed}", seed

    def on_before_backward(self, trainer, *_):
        if trainer.global_step < 2 or self.sprung.exists():
            return
        self.sprung.touch()
        if self.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("the disk is full")
"""


def test_sweep_repeated_after_failures_equals_one_without_failures(
    llm, forks, text, tmp_path, monkeypatch
):
    """One job is killed and one fails; the same command again gives equal metrics, to the bit."""
    (tmp_path / "trap.py").write_text(TRAP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))

    def words(output: str, traps: str) -> list[str]:
        trap = f"+callbacks.trap={{_target_:trap.Trap,folder:{traps},seed:${{seed}}}}"
        where = (f"data.path={text}", f"output_dir={tmp_path}/{output}")
        return ["train", "-m", *WORDS, *where, "seed=1,2", "trust=[trap]", trap]

    (tmp_path / "none").mkdir()
    for seed in (1, 2):
        (tmp_path / "none" / f"sprung{seed}").touch()
    (tmp_path / "set").mkdir()
    assert llm(*words("quiet", str(tmp_path / "none")))[0] == 0

    status, out, _ = llm(*words("loud", str(tmp_path / "set")))
    assert status == 1
    jobs = only_sweep(tmp_path / "loud").jobs
    assert [job.run.status for job in jobs] == ["failed", "failed"]
    assert jobs[0].run.record["error"] == "killed by SIGKILL"
    assert jobs[1].run.record["error"] == "RuntimeError: the disk is full"
    assert "killed by SIGKILL" in out
    assert "the disk is full" in (jobs[0].sweep / "table.md").read_text()

    assert llm(*words("loud", str(tmp_path / "set")))[0] == 0
    quiet, loud = only_sweep(tmp_path / "quiet"), only_sweep(tmp_path / "loud")
    assert [job.outcome["attempts"] for job in loud.jobs] == [2, 2]
    assert stable_rows(quiet.path / "table.csv") == stable_rows(loud.path / "table.csv")
    for ours, theirs in zip(quiet.runs, loud.runs, strict=True):
        assert ours.record["metrics"]["val/loss"] == theirs.record["metrics"]["val/loss"]
        assert stable_rows(ours.metrics) == stable_rows(theirs.metrics)


def test_each_job_has_its_own_process_and_records_its_sweep(llm, text, tmp_path, monkeypatch):
    """With variables of another launcher, in a path with special characters."""
    odd = text.rename(tmp_path / "my text: a\\b, c ${x}='1'.txt")
    path = str(odd).replace(",", "\\,")
    monkeypatch.setenv("WORLD_SIZE", "7")
    words = [*WORDS, f"data.path={path}", "seed=1,2", "trainer.max_steps=2"]
    assert llm("train", "-m", *words, f"output_dir={tmp_path}/runs")[0] == 0
    records = [run.record for run in only_sweep(tmp_path / "runs").runs]
    assert len({record["process"] for record in records} | {os.getpid()}) == 3
    assert {record["sweep"] for record in records} == {only_sweep(tmp_path / "runs").name}
    assert {record["devices"] for record in records} == {1}
    assert {record["overrides"]["data.path"] for record in records} == {str(odd)}
    (saved, _) = (read_config(run.config, ()) for run in only_sweep(tmp_path / "runs").runs)
    assert saved.data.path == str(odd)


def test_all_points_use_the_precision_that_auto_resolves_to(llm, forks, text, tmp_path):
    """The measurement of the first job is saved and used by the others."""
    words = [word for word in WORDS if not word.startswith("hardware.precision")]
    words += [f"data.path={text}", "trainer.max_steps=1", "hardware.precision=auto", "seed=1,2"]
    status, _, err = llm("train", "-m", *words, "output_dir=runs")
    assert status == 0, err
    sweep = only_sweep(tmp_path / "runs")
    (settled,) = json.loads((sweep.path / SETTLED).read_text()).values()
    found = [read_config(run.config, ()).hardware.precision for run in sweep.runs]
    assert found == [settled] * 2


def test_done_jobs_are_skipped_and_failed_ones_repeated(llm, stand_in):
    line = ["train", "-m", "seed=1,2,3"]
    calls = stand_in(lambda job: done(job) if job.number != 1 else 1)
    status, out, _ = llm(*line)
    assert (status, calls) == (1, [0, 1, 2])
    assert "ended with status 1" in out
    calls = stand_in(done)
    assert llm(*line)[0] == 0
    assert calls == [1]
    calls = stand_in(done)
    assert llm(*line, "rerun=true")[0] == 0
    assert calls == [0, 1, 2]


def test_table_is_written_after_each_new_outcome(llm, stand_in, monkeypatch):
    """After each job that had a process, and at the end."""
    written = []
    monkeypatch.setattr(Table, "write", lambda *given: written.append(given))
    stand_in(done)
    llm("train", "-m", "seed=1,2,3")
    assert len(written) == 4
    llm("train", "-m", "seed=1,2,3")
    assert len(written) == 5


def test_refused_job_has_a_table_row_with_the_reason(llm, stand_in, tmp_path):
    """Another run has the same name. It is finished and is not changed."""

    def refuse(job) -> int:
        Run(job.directory).update(status="done", request="another")
        job.file("err").write_text(
            "x was trained with another configuration; choose another name=\n"
        )
        return 2

    stand_in(refuse)
    assert llm("train", "-m", "seed=1,2")[0] == 1
    (first, _) = only_sweep(tmp_path).jobs
    assert first.run.status == "failed"
    assert first.run.record["error"].startswith("x was trained with another configuration")
    assert Run(first.directory).status == "done"
    assert not first.run.metrics.exists(), "the metrics of the other run are not in this row"


def test_changed_configuration_with_the_same_name_is_refused_before_anything_changes(
    llm, stand_in, tmp_path
):
    with initialize_config_module("llm.conf", version_base="1.3"):
        configs = {n: compose("train", [f"seed={n}", "optimizer.lr=0.01"]) for n in (1, 2)}

    def train(job) -> int:
        run, config = Run(job.directory), configs[job.identity["seed"]]
        run.last.parent.mkdir(parents=True)
        run.last.touch()
        OmegaConf.save(config, run.config)
        run.update(fingerprint=fingerprint(config))
        return done(job)

    stand_in(train)
    assert llm("train", "-m", "name=mine", "seed=1,2", "optimizer.lr=0.01")[0] == 0
    before = (only_sweep(tmp_path).path / "sweep.json").read_text()
    calls = stand_in(train)
    status, _, err = llm("train", "-m", "name=mine", "seed=1,2", "optimizer.lr=0.02")
    assert (status, calls) == (2, [])
    assert err.splitlines()[:2] == [
        "outputs/pretraining/mine,seed=1 was trained with another configuration; resume from its last checkpoint "
        "with resume=allow_changes, choose another name=, start from its weights with weights=run "
        "weights.path=outputs/pretraining/mine,seed=1 name=NEW, or replace it with rerun=true",
        "optimizer.lr: 0.01 → 0.02",
    ]
    assert (only_sweep(tmp_path).path / "sweep.json").read_text() == before


@pytest.mark.parametrize("status", [130, 143])
def test_job_stopped_by_a_signal_is_recorded_as_interrupted(llm, stand_in, tmp_path, status):
    stand_in(lambda job: status)
    llm("train", "-m", "seed=1,2")
    outcomes = [job.outcome["status"] for job in only_sweep(tmp_path).jobs]
    assert outcomes == ["interrupted"] * 2


def test_outcome_of_another_point_with_this_number_is_ignored(llm, stand_in, tmp_path):
    stand_in(lambda job: 1)
    llm("train", "-m", "name=mine", "optimizer.lr=9,1")
    stand_in(lambda job: 130)
    llm("train", "-m", "name=mine", "optimizer.lr=2,1,9")
    assert [run.status for run in only_sweep(tmp_path).runs] == ["pending"] * 3


def finds_it_done(job) -> int:
    """Act as a job whose run already has more steps than requested: do nothing, and report it."""
    Run(job.directory).update(**job.identity, status="done", request="longer", ended="noon")
    return 0


def test_longer_run_satisfies_a_shorter_request_until_it_is_retrained(llm, stand_in, tmp_path):
    line = ["train", "-m", "seed=1,2"]
    calls = stand_in(finds_it_done)
    assert llm(*line)[0] == 0
    assert llm(*line)[0] == 0
    assert calls == [0, 1]
    (first, second) = only_sweep(tmp_path).jobs
    Run(first.directory).update(request="shorter", ended="one")  # as rerun=true does, by hand
    assert [job.run.status for job in (first, second)] == ["pending", "done"]
    assert first.outcome == {}
    calls = stand_in(done)
    assert llm(*line)[0] == 0
    assert calls == [0]


def test_outcome_of_another_directory_is_ignored(llm, stand_in, tmp_path):
    """In a sweep with other values the same point has another name, and so another run."""
    stand_in(finds_it_done)
    llm("train", "-m", "seed=1,2")
    first = only_sweep(tmp_path).jobs[0]
    moved = replace(first, directory=first.directory.with_name("other"))
    Run(moved.directory).update(status="done", request="longer", ended="noon")
    assert first.is_done
    assert not moved.is_done


def test_old_failure_is_not_reported_as_the_new_one(llm, stand_in, tmp_path):
    def diverge(job) -> int:
        run = Run(job.directory)
        run.update(**job.identity, request=job.request)
        run.finish("failed", error="training diverged")
        return 1

    stand_in(diverge)
    llm("train", "-m", "seed=1,2")
    assert [run.record["error"] for run in only_sweep(tmp_path).runs] == ["training diverged"] * 2

    def refuse(job) -> int:
        job.file("err").write_text("data.path: docs is gone\n")
        return 2

    stand_in(refuse)
    llm("train", "-m", "seed=1,2")
    errors = [run.record["error"] for run in only_sweep(tmp_path).runs]
    assert errors == ["data.path: docs is gone"] * 2


def test_jobs_are_not_tasks_of_the_sweeps_slurm_step(llm, monkeypatch, tmp_path):
    """Otherwise they would wait for the other tasks of the step."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    found = []
    monkeypatch.setattr(
        sweep_job,
        "run_process",
        lambda job, words, environment, signals_received: found.append(environment) or 130,
    )
    llm("train", "-m", "seed=1,2")
    assert found
    assert not any(name.startswith("SLURM_") for environment in found for name in environment)


def test_sweep_on_several_machines_is_refused(llm):
    status, _, err = llm("train", "-m", "hardware=ddp", "hardware.num_nodes=2", "seed=1,2")
    assert status == 2
    assert "a job of a sweep runs on one machine" in err


def test_two_launchers_do_not_run_one_job(llm, stand_in, tmp_path):
    """The second launcher skips the job, and reports its state."""
    inner = []

    def run_the_same_sweep(job) -> int:
        with job.claimed() as is_ours:
            inner.append(is_ours)
        return done(job)

    stand_in(run_the_same_sweep)
    assert llm("train", "-m", "seed=1,2")[0] == 0
    assert inner == [False, False]


def test_ctrl_c_lets_the_job_save_and_ends_the_sweep(tmp_path):
    """A terminal signals the sweep and its job; a scheduler signals only the sweep."""
    job = tmp_path / "python"
    job.write_text(
        f"#!{sys.executable}\nimport signal, sys, time\n"
        "def stop(*_):\n    time.sleep(0.3); open('saved', 'a').write('x'); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop)\n"
        "open('started', 'w').close()\ntime.sleep(60)\n"
    )
    job.chmod(0o755)
    environment = os.environ | {SCRIPT: str(job)}
    for number, tell in ((signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)):
        (tmp_path / "started").unlink(missing_ok=True)
        log = tmp_path / "log"
        parent = forked.start_llm(
            ["train", "-m", "seed=1,2"],
            log,
            tmp_path / "err",
            environment,
            folder=tmp_path,
            module="stand_in",
        )
        while not (tmp_path / "started").exists():
            assert parent.is_alive()
            time.sleep(0.01)
        tell(parent.pid, number)
        parent.join(30)
        assert parent.exitcode == 128 + number
        out = log.read_text()
        assert "the sweep stopped; the same command resumes it" in out
        outcomes = [job.outcome.get("status") for job in only_sweep(tmp_path).jobs]
        assert outcomes == ["interrupted", None]
    assert (tmp_path / "saved").read_text() == "xx"


def test_saved_sweep_needs_no_multirun_flag(llm, stand_in, tmp_path):
    calls = stand_in(done)
    assert llm("train", "sweep=sizes", "seed=5")[0] == 0
    assert calls == [0, 1, 2, 3]
    found = only_sweep(tmp_path)
    assert found.name == "sizes,seed=5"
    assert found.jobs[0].directory.name == "python_docs,size=nano,sweep=sizes,seed=5"


def test_points_with_different_budgets_have_different_directories(llm, stand_in, tmp_path):
    stand_in(done)
    assert llm("train", "-m", "trainer.max_steps=2,4", "seed=1")[0] == 0
    names = [job.directory.name for job in only_sweep(tmp_path).jobs]
    assert names == [f"python_docs,trainer.max_steps={n},seed=1" for n in (2, 4)]


def test_name_of_a_sweep_is_a_prefix_of_its_runs(llm, stand_in, tmp_path):
    stand_in(done)
    assert llm("train", "-m", "name=mine", "size=nano", "seed=1,2")[0] == 0
    found = only_sweep(tmp_path)
    assert found.name == "mine"
    assert [job.directory.name for job in found.jobs] == ["mine,seed=1", "mine,seed=2"]


def test_earlier_sweep_with_the_same_name_is_moved(llm, stand_in, tmp_path):
    """A sweep that has more values or is longer is not moved."""
    line = ["train", "-m", "name=mine"]
    stand_in(done)
    assert "was moved to" not in llm(*line, "seed=1,3")[1]
    for more in (["seed=1,2,3"], ["seed=1,2,3", "trainer.max_steps=2000"]):
        assert "was moved to" not in llm(*line, *more)[1]
    before = (only_sweep(tmp_path).path / "table.csv").read_text()
    _, out, _ = llm(*line, "seed=4,5")
    assert out.splitlines()[0] == "the earlier sweep was moved to outputs/sweeps/mine~1"
    assert len(only_sweep(tmp_path).jobs) == 2
    kept = Sweep(tmp_path / "outputs/sweeps/mine~1")
    assert (kept.path / "table.csv").read_text() == before
    assert [run.status for run in kept.runs] == ["done"] * 3


def test_name_of_a_running_sweep_is_refused_to_another_sweep(llm, stand_in, tmp_path):
    """Neither fewer jobs nor new jobs in between are allowed: new ones would change the numbers of running jobs."""
    line = ["train", "-m", "name=mine"]
    stand_in(done)
    llm(*line, "seed=1,2,4")
    running = only_sweep(tmp_path)
    with running.jobs[2].claimed():
        assert llm(*line, "seed=1,2,4")[0] == 0
        found = [llm(*line, "seed=1,2"), llm(*line, "seed=1,2,3,4")]
    for status, _, err in found:
        assert (status, len(err.splitlines())) == (75, 1)
        assert (
            "another sweep is running under this name; wait for it, or choose another name=" in err
        )
    assert len(running.jobs) == 3


def test_repeated_point_is_refused(llm):
    status, _, err = llm("train", "-m", "seed=1,1")
    assert status == 2
    assert "2 points of the sweep are the same run" in err
    assert err.count("\n") == 1


def test_a_sweep_may_be_moved_with_its_runs(llm, stand_in, tmp_path):
    stand_in(done)
    llm("train", "-m", "seed=1,2")
    (tmp_path / "outputs").rename(tmp_path / "elsewhere")
    assert [run.status for run in only_sweep(tmp_path / "elsewhere").runs] == ["done", "done"]
    plan = json.loads(next(tmp_path.glob("**/sweep.json")).read_text())
    assert str(tmp_path) not in json.dumps(plan["jobs"])


def test_points_of_different_budgets_validate_on_the_same_text():
    loader = open_loader("pkg://llm.conf")

    def make(words):
        return check_composed(loader, compose_command(loader, "train", words))

    words = (*WORDS, "data.path=x.txt")
    unequal = [make([*words, f"data.batch_size={size}"]) for size in (4096, 8192)]
    found = sweep_runner.adjust_points(unequal, make)
    assert [each.trainer.val_bytes for each in found] == [1.5 * 2 * 4096 * 16] * 2
    assert [each.composed.directory for each in found] == [
        each.composed.directory for each in unequal
    ]
    epochs = [make([*words, "trainer.max_steps=null", f"trainer.max_epochs={n}"]) for n in (1, 2)]
    found = sweep_runner.adjust_points(epochs, make)
    assert [each.trainer.val_bytes for each in found] == [math.inf] * 2, "the whole part"
    equal = [make([*words, f"model={name}"]) for name in ("gpt", "llama")]
    assert [each.trainer.val_bytes for each in sweep_runner.adjust_points(equal, make)] == [
        None
    ] * 2
