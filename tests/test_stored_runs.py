"""Runs of an earlier version: this version resumes them and gets the same metrics.

They were made with `make.py` in their folder. A change that alters the expected results breaks the format of runs:
increase `llm.runs.FORMAT`, and store runs of the new format next to these.
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from llm.runs import FORMAT, Run
from llm.sweeps import Sweep

STORED = Path(__file__).parent / "cases" / f"runs_of_format_{FORMAT}"


def test_stored_runs_are_resumed_evaluated_and_compared(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("make", STORED / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    folder = make.copy_runs(tmp_path / "runs")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", sys.argv)  # restored after the commands that it runs
    before = Sweep(folder / "outputs" / "sweeps" / "sweep").jobs
    found = make.use_runs()
    expected = json.loads((STORED / "expected.json").read_text("utf-8"))
    assert found.keys() == expected.keys()
    for name in make.LINES:
        run = Run(folder / "outputs" / name)
        assert (run.status, run.record["steps"]) == ("done", make.STEPS + 1)
        assert found[name]["evaluation"] == pytest.approx(expected[name]["evaluation"], rel=1e-4)
        assert_alike(found[name]["metrics"], expected[name]["metrics"])
    for name in ("sweep", "pretraining"):
        assert_alike(found[name], expected[name])
    after = Sweep(folder / "outputs" / "sweeps" / "sweep").jobs
    assert [job.outcome for job in after] == [job.outcome for job in before], "none ran again"


def assert_alike(rows: list, expected: list) -> None:
    assert len(rows) == len(expected) > 0
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
