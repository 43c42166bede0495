"""metrics.csv: appended, merged by step, and truncated to the checkpoint on resume."""

from llm.comparison.result import read_metric_rows
from llm.loggers.csv import CSVLogger


def test_metrics_of_one_step_share_a_row_and_columns_can_be_added(tmp_path):
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.log_metrics({"train/loss": 3.0}, step=10)
    logger.log_metrics({"train/loss": 2.0}, step=20)
    logger.log_metrics({"val/loss": 2.5}, step=20)
    logger.finalize("success")
    assert read_metric_rows(tmp_path / "metrics.csv") == [
        {"step": "10", "train/loss": "3.0", "val/loss": ""},
        {"step": "20", "train/loss": "2.0", "val/loss": "2.5"},
    ]


def test_saved_row_is_updated_by_later_metrics_of_its_step(tmp_path):
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.log_metrics({"train/loss": 3.0}, step=10)
    for metrics in ({"train/loss": 2.0}, {"val/loss": 2.5}, {"val/loss": 2.4}):
        logger.log_metrics(metrics, step=20)
        logger.save()
        logger.save()
    assert read_metric_rows(tmp_path / "metrics.csv") == [
        {"step": "10", "train/loss": "3.0", "val/loss": ""},
        {"step": "20", "train/loss": "2.0", "val/loss": "2.4"},
    ]


def test_resume_deletes_only_the_rows_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = CSVLogger(path)
    for step in (10, 20, 30):
        logger.log_metrics({"train/loss": float(step)}, step=step)
    logger.save()
    resumed = CSVLogger(path, resume_step=20)
    resumed.log_metrics({"train/loss": 31.0}, step=30)
    resumed.save()
    assert [(row["step"], row["train/loss"]) for row in read_metric_rows(path)] == [
        ("10", "10.0"),
        ("20", "20.0"),
        ("30", "31.0"),
    ]


def test_new_run_starts_a_new_file(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss\n10,1.0\n")
    CSVLogger(path)
    assert read_metric_rows(path) == []


def test_incomplete_last_line_is_ignored(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,val/loss\n10,1.0,2.0\n20,1")
    assert [row["step"] for row in read_metric_rows(path)] == ["10"]
