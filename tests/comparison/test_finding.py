import pytest
from made_runs import make

from llm.comparison.finding import find
from llm.config.errors import UserError
from llm.sweeps import Sweep


def names(found):
    return [run.path.name for run in found.runs]


def sweep_of(path, *directories):
    sweep = Sweep(path)
    sweep.begin(
        jobs=[
            sweep.entry(n, [f"seed={n}"], directory, "asked", {"overrides": {"seed": str(n)}})
            for n, directory in enumerate(directories)
        ]
    )
    return sweep


def test_a_run_a_folder_of_runs_and_folders_of_those(tmp_path):
    for name in ("pretraining/a", "pretraining/b", "study/classification/c"):
        make(tmp_path / name)
    assert names(find([tmp_path / "pretraining" / "a"])) == ["a"]
    assert names(find([tmp_path / "pretraining"])) == ["a", "b"]
    assert names(find([tmp_path])) == ["a", "b", "c"]
    assert names(find([tmp_path, tmp_path / "pretraining" / "b"])) == ["a", "b", "c"], "each once"


def test_what_a_rerun_set_aside_is_not_meant(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "a~1")
    assert names(find([tmp_path])) == ["a"]


def test_a_sweep_means_its_jobs_those_that_wait_too(tmp_path):
    runs = tmp_path / "pretraining"
    make(runs / "a", request="asked")
    make(runs / "other")
    sweep = sweep_of(tmp_path / "sweeps" / "s", runs / "a", runs / "b")
    found = find([sweep.path])
    stand = {(run.path.name, run.status) for run in found.runs}
    assert stand == {("a", "done"), ("b", "pending")}
    assert sorted(names(find([tmp_path]))) == ["a", "b", "other"]


def test_a_damaged_record_is_named_and_left_out(tmp_path):
    make(tmp_path / "a")
    (make(tmp_path / "b").path / "run.json").write_text('{"status": ')
    (make(tmp_path / "c").path / "run.json").write_text("[]")
    found = find([tmp_path])
    assert names(found) == ["a"]
    assert [line.split("/run.json is damaged")[0][-1] for line in found.damaged] == ["b", "c"]


def test_a_damaged_sweep_is_named(tmp_path):
    make(tmp_path / "a")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text("{}")
    found = find([tmp_path])
    assert names(found) == ["a"]
    assert "sweep.json is damaged" in found.damaged[0]


@pytest.mark.parametrize(("name", "message"), [("nowhere", "no such folder"), ("", "no run in it")])
def test_nothing_to_find_is_one_line_with_the_way_out(tmp_path, name, message):
    with pytest.raises(UserError, match=message) as error:
        find([tmp_path / name])
    assert "name a sweep, a run, or a folder of runs" in str(error.value)
    assert "\n" not in str(error.value)
