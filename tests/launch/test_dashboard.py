import io

import pytest
from made_runs import make
from rich.console import Console

from llm.launch.dashboard import LineReporter, jobs_table, newest_metrics, read_views, show_sweep
from llm.runs import Run
from llm.sweeps import Job, Sweep


@pytest.fixture
def sweep(tmp_path):
    """A sweep of five jobs that have not begun."""
    sweep = Sweep(tmp_path / "sweep")
    sweep.begin(
        jobs=[
            Job(
                sweep=sweep.path,
                number=n,
                overrides=(
                    "model=gpt",
                    f"seed={n}",
                ),
                directory=tmp_path / "runs" / str(n),
                request=str(n),
                identity={},
            )
            for n in range(5)
        ]
    )
    return sweep


def half_way(sweep, number, **record):
    """A run that has trained ten of forty steps."""
    job = sweep.jobs[number]
    job.record(status="running", request=str(number))
    record = {"status": "running", "max_steps": 40, "request": str(number), **record}
    return make(job.directory, [4.5], **record)


def printed(renderable, height=40):
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(renderable)
    return console.export_text()


def test_view_of_a_job_is_read_from_its_files(sweep):
    half_way(sweep, 1)
    view = read_views(sweep)[1]
    assert (view.label, view.status, view.steps) == ("seed=1", "running", (10, 40))
    assert (view.loss, view.val_loss, view.speed) == (4.6, 4.5, 1001)
    assert view.left == pytest.approx(30 * 100 / 1001)


def test_a_job_goes_through_its_states(sweep):
    job = sweep.jobs[0]
    assert read_views(sweep)[0].status == "pending"
    job.record(status="running", request="0")
    assert read_views(sweep)[0].status == "starting", "its process exists, its run does not yet"
    half_way(sweep, 0)
    assert read_views(sweep)[0].status == "running"
    job.record(status="failed", error="killed by SIGKILL")
    assert (read_views(sweep)[0].status, read_views(sweep)[0].error) == (
        "failed",
        "killed by SIGKILL",
    )
    job.record(status="running", error=None)
    Run(job.directory).update(status="done")
    assert read_views(sweep)[0].status == "done"


def test_reading_a_view_takes_no_lock_of_the_run(sweep):
    """A lock would make a job that starts at this moment fail."""
    run = half_way(sweep, 0)
    read_views(sweep)
    assert not list(run.path.parent.glob(".*.lock"))


def test_newest_metrics_are_read_from_the_end_of_a_long_file(tmp_path):
    lines = ["step,train/loss,val/loss"]
    lines += [f"{step},{1 / (step + 1)},{'2.5' if step == 8990 else ''}" for step in range(9000)]
    (tmp_path / "metrics.csv").write_text("\n".join([*lines, "9000,0.0"]))
    assert newest_metrics(tmp_path / "metrics.csv") == {
        "step": 8999,
        "train/loss": 1 / 9000,
        "val/loss": 2.5,
    }
    assert newest_metrics(tmp_path / "nothing.csv") == {}


def test_table_shows_steps_losses_and_errors(sweep):
    half_way(sweep, 1)
    sweep.jobs[2].record(status="failed", error="ValueError: no", request="2")
    text = printed(jobs_table(read_views(sweep), room=10))
    for word in ("seed=1", "10/40", "4.600", "4.500", "1,001", "3.00 s", "failed: ValueError: no"):
        assert word in text
    assert "1 running, 1 failed, 3 pending" in text


def test_running_jobs_are_shown_first_if_not_all_fit(sweep):
    half_way(sweep, 4)
    text = printed(jobs_table(read_views(sweep), room=2))
    assert "seed=4" in text
    assert "3 not shown" in text
    assert text.count("seed=") == 2


def test_line_reporter_prints_a_line_for_each_event(sweep):
    sweep.jobs[3].record(status="done", request="3")
    make(sweep.jobs[3].directory, request="3")
    console = Console(file=io.StringIO(), width=200, record=True)
    reporter = LineReporter(console)
    reporter.report(read_views(sweep))
    assert not console.export_text(clear=False), "jobs that were done before are not reported"
    run = half_way(sweep, 0)
    reporter.report(read_views(sweep))
    run.update(status="done")
    sweep.jobs[1].record(status="failed", error="boom [0]", request="1")
    reporter.report(read_views(sweep))
    reporter.report(read_views(sweep))
    assert console.export_text().splitlines() == [
        "[1/5] seed=0: starts",
        "[1/5] seed=0: done, val 4.500",
        "[2/5] seed=1: failed: boom [0]",
    ]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_sweep_is_shown_while_it_runs(sweep, is_terminal):
    console = Console(file=io.StringIO(), width=120, force_terminal=is_terminal)
    with show_sweep(sweep, console):
        half_way(sweep, 0).update(status="done")
    assert "seed=0" in console.file.getvalue()
    assert "done" in console.file.getvalue()
