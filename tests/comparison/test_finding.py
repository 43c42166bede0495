import json

import pytest
from made_runs import make

from llm.comparison.finding import find
from llm.comparison.table import compare
from llm.config.errors import UserError
from llm.sweeps import Job, Sweep


def names(found):
    runs, _ = found
    return [run.path.name for run in runs]


def sweep_of(path, *directories):
    sweep = Sweep(path)
    sweep.begin(
        jobs=[
            Job(
                sweep=sweep.path,
                number=n,
                overrides=(f"seed={n}",),
                directory=directory,
                request="asked",
                identity={"overrides": {"seed": str(n)}},
            )
            for n, directory in enumerate(directories)
        ]
    )
    return sweep


def test_runs_are_found_in_a_run_a_folder_of_runs_and_nested_folders(tmp_path):
    for name in ("pretraining/a", "pretraining/b", "study/classification/c"):
        make(tmp_path / name)
    assert names(find([tmp_path / "pretraining" / "a"])) == ["a"]
    assert names(find([tmp_path / "pretraining"])) == ["a", "b"]
    assert names(find([tmp_path])) == ["a", "b", "c"]
    assert names(find([tmp_path, tmp_path / "pretraining" / "b"])) == ["a", "b", "c"], "each once"


def test_archived_runs_are_not_found(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "a~1")
    assert names(find([tmp_path])) == ["a"]
    sweep_of(tmp_path / "s~1", tmp_path / "never")
    assert names(find([tmp_path])) == ["a"], "nor are jobs of an archived sweep"
    assert names(find([tmp_path / "a~1"])) == ["a~1"], "unless it is named"


def test_sweep_includes_its_pending_jobs(tmp_path):
    runs = tmp_path / "pretraining"
    make(runs / "a", request="asked")
    make(runs / "other")
    sweep = sweep_of(tmp_path / "sweeps" / "s", runs / "a", runs / "b")
    runs, _ = find([sweep.path])
    states = {(run.path.name, run.status) for run in runs}
    assert states == {("a", "done"), ("b", "pending")}
    assert sorted(names(find([tmp_path]))) == ["a", "b", "other"]


def test_a_damaged_record_is_named_and_left_out(tmp_path):
    make(tmp_path / "a")
    (make(tmp_path / "b").path / "run.json").write_text('{"status": ')
    (make(tmp_path / "c").path / "run.json").write_text("[]")
    old = make(tmp_path / "old")
    (old.path / "run.json").write_text(json.dumps(old.record | {"format": 1}))
    found = _, damaged = find([tmp_path])
    assert names(found) == ["a"]
    assert "old/run.json: has format 1, and " in damaged.pop()
    assert old.path.is_dir()
    assert [line.split("/run.json is damaged")[0][-1] for line in damaged] == ["b", "c"]


INVALID_ENTRIES = [
    {"seed": [1]},
    {"recipe": ["a"]},
    {"status": {}},
    {"vocabulary": ["x"]},
    {"task": 5},
    {"corpus": {"a": 1}},
    {"status": "finished"},
    {"steps": "10"},
]


def test_damaged_files_do_not_prevent_comparing_the_other_runs(tmp_path):
    make(tmp_path / "good", [5.0, 4.0])
    for place, odd in enumerate(INVALID_ENTRIES):
        run = make(tmp_path / f"odd{place}")
        (run.path / "run.json").write_text(json.dumps(run.record | odd))
    old = {"without": ("overrides", "choices", "recipe")}
    make(tmp_path / "quote", command='llm train model=llama "x', **old)
    make(tmp_path / "large", parameters=10**400)
    metrics = make(tmp_path / "long").metrics
    metrics.write_text(metrics.read_text() + "9," * 200_000 + "\n")
    make(tmp_path / "linked", status="running")
    (tmp_path / ".linked.lock").symlink_to(metrics)
    sweep = sweep_of(tmp_path / "s", tmp_path / "none")
    sweep.jobs[0].file("json").parent.mkdir()
    sweep.jobs[0].file("json").write_text("[]")
    found = runs, damaged = find([tmp_path])
    assert names(found) == ["good", "large", "linked", "long", "quote"]
    assert len(damaged) == len(INVALID_ENTRIES) + 1
    assert all("is damaged and left out" in line for line in damaged)
    table = compare(runs, remarks=damaged)
    assert len(table.rows) == 5
    assert any("long/metrics.csv is damaged and left out: " in note for note in table.notes)
    table.markdown()


def test_a_damaged_sweep_is_named(tmp_path):
    make(tmp_path / "a")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text("{}")
    found = _, damaged = find([tmp_path])
    assert names(found) == ["a"]
    assert "sweep.json is damaged" in damaged[0]


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "no such folder"), ("", "contains no run")]
)
def test_a_folder_without_runs_is_reported_in_one_line(tmp_path, name, message):
    with pytest.raises(UserError, match=message) as error:
        find([tmp_path / name])
    assert "name a sweep, a run, or a folder of runs" in str(error.value)
    assert "\n" not in str(error.value)
