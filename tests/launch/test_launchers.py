"""Sweeps with Hydra's parallel launchers and its Optuna sweeper, run for real.

Only the process of each job (a script) and Slurm's own commands are replaced.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import stand_in

import llm.__main__ as command
from llm.launch import sweep_job
from llm.runs import Run
from llm.sweeps import Sweep

# Shell code for the script of a job: read its seed, and write the record of a finished run.
SEED = "seed=$(sed -n 's/^  seed: //p' \"${@: -1}\")\n"  # from the job file, its last argument
DONE = (
    'run="outputs/pretraining/python_docs,seed=$seed"; mkdir -p "$run"\n'
    'echo \'{"format": 2, "status": "done"}\' > "$run/run.json"\n'
)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def started(words: list[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen:
    """Start `llm WORDS` as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-m", "stand_in", *words],
        env=os.environ | environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def only_sweep(folder: Path) -> Sweep:
    (file,) = folder.glob("outputs/sweeps/*/sweep.json")
    return Sweep(file.parent)


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def test_parallel_jobs_get_gpus_and_save_on_ctrl_c(tmp_path):
    """One of joblib's three processes has no job. It must neither fail nor stop the others."""
    code = (
        "trap 'sleep 0.5; echo saved >> saved; exit 130' INT\n"
        'echo "$CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS" >> started\nsleep 60 & wait $!'
    )
    environment = stand_in.script(tmp_path, code)
    environment |= {"CUDA_VISIBLE_DEVICES": "4,7", "TMPDIR": str(tmp_path)}
    words = ["train", "-m", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=3"]
    process = started(words, tmp_path, environment)
    wait_for(lambda: len(lines(tmp_path / "started")) == 2, process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert len(lines(tmp_path / "saved")) == 2
    assert {line.split()[0] for line in lines(tmp_path / "started")} == {"4", "7"}
    assert all(int(line.split()[1]) >= 1 for line in lines(tmp_path / "started"))
    assert out.count("the sweep stopped") == 1
    assert len(err.strip().splitlines()) == 1, err
    found = only_sweep(tmp_path)
    assert [job.outcome["status"] for job in found.jobs] == ["interrupted"] * 2
    assert (found.path / "table.md").exists()
    assert not list(found.path.glob(".stop*"))


SBATCH = """#!/bin/bash
cp "$1" script
echo "Submitted batch job 42"
for task in 0 1; do
  export SLURM_JOB_ID=5$task SLURM_ARRAY_JOB_ID=42 SLURM_ARRAY_TASK_ID=$task SLURM_JOB_NAME=llm
  export SLURM_NTASKS=1 SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
  echo "$(export -p)" > task.42_$task
  cat "$1" >> task.42_$task
  bash task.42_$task > /dev/null 2>&1 &
done
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
  case $1 in --output|--error) shift 2;; *) shift;; esac
done
echo $$ > pid.$SLURM_ARRAY_TASK_ID
exec "$@" > /dev/null 2>> slurm.err
"""
SCONTROL = """#!/bin/bash
echo "$@" >> requeued
bash "task.$2" > /dev/null 2>&1 &
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"; echo "42_0|RUNNING|here"; echo "42_1|RUNNING|here"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """A folder with commands of Slurm that run their jobs on this machine at once."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tools = {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, "sacct": SACCT}
    for name, code in tools.items():
        (folder / name).write_text(code)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_slurm_sweep_saves_and_requeues_a_job_at_its_time_limit(slurm):
    code = (
        f"{SEED}trap 'echo saved >> saved; exit 130' INT\necho \"$LLM_SWEEP\" >> started.$seed\n"
        f"if [[ $seed == 2 && ! -e saved ]]; then sleep 60 & wait $!; fi\n{DONE}"
    )
    words = ["train", "-m", "seed=1,2", "hydra/launcher=submitit_slurm"]
    words += ["hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=8"]
    words += ["hydra.launcher.timeout_min=90", "hydra.launcher.max_num_timeout=3"]
    process = started(words, slurm, stand_in.script(slurm, code))
    wait_for((slurm / "started.2").exists, process)
    os.kill(int((slurm / "pid.1").read_text()), signal.SIGUSR2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err + (slurm / "slurm.err").read_text()

    found = only_sweep(slurm)
    assert lines(slurm / "saved") == ["saved"]
    assert lines(slurm / "requeued") == ["requeue 42_1"]
    assert [lines(slurm / f"started.{seed}") for seed in (1, 2)] == [[found.name], [found.name] * 2]
    assert [job.outcome["status"] for job in found.jobs] == ["done", "done"]
    assert [job.outcome["attempts"] for job in found.jobs] == [1, 2]

    script = (slurm / "script").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.MULTILINE))
    wanted = {"partition": "gpu", "gpus-per-node": "8", "nodes": "1", "ntasks-per-node": "1"}
    wanted |= {"time": "90", "array": "0-1%2", "signal": "USR2@120", "job-name": "llm"}
    assert wanted.items() <= asked.items()
    (line,) = re.findall(r"^srun .*$", script, re.MULTILINE)
    assert line.endswith(f"{sys.executable} -u -m submitit.core._submit {found.path}/.submitit/%j")


@pytest.fixture
def search(tmp_path, monkeypatch, capsys):
    """search(ends, "key=value", …): run an Optuna sweep in this process; return the jobs that it started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))

    def search(ends: Callable[[dict[str, str]], float | None], *words: str):
        ran = []

        def run_process(job, words, environment, asked) -> int:
            for ending in ("log", "err"):
                job.file(ending).touch()
            ran.append(job)
            loss = ends(job.identity["overrides"])
            if loss is None:
                return 1
            run = Run(job.directory)
            run.update(
                **job.identity, status="done", request=job.request, metrics={"val/loss": loss}
            )
            return 0

        monkeypatch.setattr(sweep_job, "run_process", run_process)
        line = ["llm", "train", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1", *words]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as ended:
            command.main()
        captured = capsys.readouterr()
        return ended.value.code, ran, captured.out + captured.err

    return search


def best(folder: Path) -> float:
    text = (only_sweep(folder).path / "optimization_results.yaml").read_text()
    return float(re.findall(r"best_value: (.*)", text)[0])


def test_optuna_minimizes_the_validation_loss_despite_failed_trials(search, tmp_path):
    line = ["hydra.sweeper.n_trials=3", "optimizer.lr=interval(1e-4,1e-2)", "name=mine"]
    losses = iter([3.0, None, 2.0])
    status, ran, out = search(lambda _: next(losses), *line, "callbacks.samples=null")
    assert status == 1
    assert [job.number for job in ran] == [0, 1, 2]
    assert len({job.directory for job in ran}) == 3, "trials with one name are different runs"
    assert [run.status for run in only_sweep(tmp_path).runs] == ["done", "failed", "done"]
    assert best(tmp_path) == 2.0
    assert "ended with status 1" in out
    # The second search adds its jobs to those of the first.
    search(lambda _: 1.0, *line, "callbacks.samples=null")
    assert len(only_sweep(tmp_path).jobs) == 6
    assert len(json.loads((only_sweep(tmp_path).path / "sweep.json").read_text())["jobs"]) == 6


@pytest.mark.parametrize("word", ["dry_run=true", "match=parameters"])
def test_dry_run_and_match_are_refused_for_a_search(search, tmp_path, word):
    status, ran, said = search(lambda _: 1.0, "model.dropout=choice(0.0,0.1)", word)
    assert (status, ran) == (2, [])
    key = word.partition("=")[0]
    assert said.startswith(f"{key}: the sweeper chooses its points one by one;")
    assert not (tmp_path / "outputs").exists()


def test_point_that_optuna_repeats_is_not_trained_again(search, tmp_path):
    line = ["hydra.sweeper.n_trials=6", "model.dropout=choice(0.0,0.1)", "size=nano"]
    status, ran, _ = search(lambda overrides: 1 + float(overrides["model.dropout"]), *line)
    assert status == 0
    assert len(ran) == len(only_sweep(tmp_path).jobs) <= 2
    assert best(tmp_path) == min(
        1 + float(job.identity["overrides"]["model.dropout"]) for job in ran
    )


def test_search_writes_its_folder_into_output_dir(search, tmp_path):
    line = ["hydra.sweeper.n_trials=1", "model.dropout=choice(0.0,0.1)", "output_dir='my runs'"]
    assert search(lambda _: 1.0, *line)[0] == 0
    (file,) = tmp_path.glob("my runs/sweeps/*/sweep.json")
    (job,) = Sweep(file.parent).jobs
    assert job.directory.parent == tmp_path / "my runs/pretraining"
    assert not (tmp_path / "outputs").exists()


def test_search_whose_trials_all_fail_reports_it_and_writes_a_table(search, tmp_path):
    line = ["hydra.sweeper.n_trials=2", "optimizer.lr=interval(1e-4,1e-2)"]
    status, _, out = search(lambda _: None, *line)
    assert status == 1
    assert "No trials are completed yet" in out
    assert (only_sweep(tmp_path).path / "table.md").exists()


def test_error_common_to_all_trials_is_found_before_the_first(search):
    status, ran, _ = search(lambda _: 1.0, "optimizer.lr=interval(1e-4,1e-2)", "size.dims=3")
    assert (status, ran) == (2, [])
