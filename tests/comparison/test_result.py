import math

import pytest
from made_runs import make

from llm.comparison.result import Result, read_metrics
from llm.config.reading import LARGEST
from llm.launch.dashboard import newest_metrics
from llm.runs import Run


def test_metrics_are_those_of_the_best_validation(tmp_path):
    found = Result(make(tmp_path / "a", [5.0, 3.0, 4.0])).metrics
    assert found["final_loss"] == 4.0
    assert found["best_loss"] == 3.0
    assert found["bits_per_byte"] == pytest.approx(3.0 / math.log(2) / 4.0)
    assert found["tokens"] == 3000
    assert found["tokens_per_second"] == 1002
    assert found["peak_gib"] == 1.0


def test_tokens_are_interpolated_and_extrapolated_from_the_counts(tmp_path):
    rows = [
        {"step": 10, "tokens": 1000.0},
        {"step": 20, "tokens": 3000.0},
        {"step": 23, "val/loss": 1.0},
    ]
    result = Result(make(tmp_path / "a", rows=rows))
    assert [result.tokens_at(step) for step in (0, 5, 10, 15, 20, 23)] == [
        0,
        500,
        1000,
        2000,
        3000,
        3600,
    ]
    assert result.metrics["tokens"] == 3600
    assert result.curve("val/loss") == [(23, 3600, 1.0)]


def test_missing_token_counts_follow_from_the_record(tmp_path):
    result = Result(make(tmp_path / "a", rows=[{"step": 30, "val/loss": 1.0}], tokens_per_step=7))
    assert result.metrics["tokens"] == 210


def test_diverged_run_keeps_its_best_loss(tmp_path):
    found = Result(make(tmp_path / "a", [5.0, 4.0, math.nan])).metrics
    assert found["best_loss"] == 4.0
    assert math.isnan(found["final_loss"])


@pytest.mark.parametrize("ending", ["30,abc", "30,3.1\n40", '30,3.1\n40,"3'])
def test_truncated_metrics_file_is_read_up_to_the_cut(tmp_path, ending):
    (tmp_path / "metrics.csv").write_text(f"step,val/loss,tokens\n10,5.0,1\n20,4.0,2\n{ending}")
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows[:2] == [
        {"step": 10, "val/loss": 5.0, "tokens": 1},
        {"step": 20, "val/loss": 4.0, "tokens": 2},
    ]
    assert all("val/loss" not in row or row["val/loss"] in (5.0, 4.0, 3.1, 3.0) for row in rows)


def test_truncated_number_is_ignored(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,val/loss\n10,5.0\n20,4")
    assert read_metrics(tmp_path / "metrics.csv") == [{"step": 10, "val/loss": 5.0}]
    assert newest_metrics(tmp_path / "metrics.csv")["val/loss"] == 5.0


def folder(path):
    path.unlink()
    path.mkdir()


def huge(path):
    with path.open("ab") as file:
        file.truncate(LARGEST + 1)  # a sparse file: uses no disk space


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.write_bytes(b"\xff" * 9), "is not UTF-8 text"),
        (lambda path: path.write_text("a,b\nc,d\n"), "step is None, not a whole number"),
        (lambda path: path.write_text("step,a\n1e3,d\n"), "step is '1e3', not a whole number"),
        (folder, "Is a directory"),
        (huge, "has 268,435,457 bytes"),
    ],
)
def test_a_damaged_metrics_file_is_reported_and_left_out(spoil, told, tmp_path):
    run = make(tmp_path / "run")
    spoil(run.metrics)
    result = Result(run)
    assert result.rows == []
    assert f"{run.metrics} is damaged and left out: " in str(result.damage)
    assert told in str(result.damage)


def test_a_run_that_did_not_start_is_pending(tmp_path):
    result = Result(Run(tmp_path / "nowhere"))
    assert (result.status, result.metrics, result.data) == ("pending", {}, None)


def test_run_whose_process_died_is_interrupted(tmp_path):
    assert Result(make(tmp_path / "a", status="running")).status == "interrupted"
