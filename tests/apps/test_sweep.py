import os
import signal
import subprocess
import sys
import time

import pytest

from llm.apps import sweep

WORDS = [
    *("size=nano", "size.dim=32", "size.context_length=16", "tokenizer=byte", "data=text"),
    *("hardware=cpu", "hardware.threads=1", "trainer.max_steps=2", "callbacks.samples=null"),
]


def test_every_point_trains_in_a_process_of_its_own(text, tmp_path):
    """The peak memory of a process is that of one job, and so is all else that outlives one."""
    command = [sys.executable, "-m", "llm", "train", "-m", *WORDS, f"data.path={text}"]
    command += ["seed=1,2", f"output_dir={tmp_path}/runs"]
    environment = os.environ | {"LLM_CACHE": str(tmp_path / "cache"), "WORLD_SIZE": "7"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "[1/2] seed=1" in done.stdout
    assert "[2/2] seed=2" in done.stdout
    records = sorted((tmp_path / "runs").glob("*/*/run.json"))
    assert len(records) == 2
    assert (
        len({record.read_text().split('"process": ')[1].split(",")[0] for record in records}) == 2
    )


@pytest.fixture
def jobs(monkeypatch, tmp_path):
    """Stands Python scripts in for `llm`: the words of a job are the script's arguments."""

    def make(code: str) -> None:
        script = tmp_path / "job.py"
        script.write_text(code)
        interpreter = tmp_path / "python"
        interpreter.write_text(f'#!/bin/bash\nshift 3\nexec {sys.executable} {script} "$@"\n')
        interpreter.chmod(0o755)
        monkeypatch.setattr(sweep.sys, "executable", str(interpreter))

    return make


def test_a_job_that_fails_does_not_stop_the_others(jobs, capfd):
    jobs("import sys; print('ran', *sys.argv[1:]); sys.exit(sys.argv[-1] == 'seed=2')")
    assert sweep.launch("train", [["x=1", f"seed={n}"] for n in (1, 2, 3)]) == 1
    out, err = capfd.readouterr()
    assert [line for line in out.splitlines() if line.startswith("ran")] == [
        f"ran x=1 seed={n}" for n in (1, 2, 3)
    ]
    assert err == "\n1 of 3 jobs failed:\n  seed=2 (status 1)\n"


def test_ctrl_c_lets_the_job_save_and_ends_the_sweep(tmp_path):
    code = f"""
import signal, sys
from llm.apps import sweep
sweep.sys.executable = {str(tmp_path / "job")!r}
sys.exit(sweep.launch("train", [["seed=1"], ["seed=2"]]))
"""
    job = tmp_path / "job"
    job.write_text(
        f"#!{sys.executable}\nimport signal, sys, time\n"
        "def stop(*_):\n    time.sleep(0.3); print('saved', flush=True); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, stop)\nprint('started', flush=True)\ntime.sleep(60)\n"
    )
    job.chmod(0o755)
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    while "started" not in parent.stdout.readline():
        time.sleep(0.01)
    os.killpg(parent.pid, signal.SIGINT)
    out, _ = parent.communicate(timeout=30)
    assert parent.returncode == 130
    assert "saved" in out
    assert "the sweep stopped at job 1 of 2" in out
