"""A run directory: its names, its record and its backups."""

import json

import pytest
from hydra import compose, initialize_config_module

from llm.config.run_name import LONGEST_NAME, base_name, run_name
from llm.runs import EXPERIMENTS, ClaimedRunError, Run, list_runs


@pytest.mark.parametrize(
    ("choices", "words", "name"),
    [
        ({"experiment": "python_docs", "data": "python_docs"}, ["seed=1"], "python_docs,seed=1"),
        (
            {"experiment": "python_docs", "data": "text"},
            ["data=text", "data.path=a b.txt"],
            "text,data.path=a-b.txt",
        ),
        ({"experiment": "spam", "data": "labelled"}, ["data=labelled"], "spam,data=labelled"),
    ],
)
def test_a_name_begins_with_the_experiment_or_the_data(choices, words, name):
    assert run_name(base_name(choices), words) == name


def test_a_name_is_at_most_as_long_as_a_file_name():
    assert len(run_name("text", [f"data.path={'語' * 100}"]).encode()) <= LONGEST_NAME


def test_a_name_is_the_experiment_and_the_overrides_in_order():
    assert run_name("verdict", ["model=llama", "seed=2"]) == "verdict,model=llama,seed=2"


@pytest.mark.parametrize(
    "override",
    [
        "hardware=cpu",
        "hardware.precision=32",
        "logger=wandb",
        "~callbacks.samples",
        "callbacks.samples.max_tokens=3",
        "trainer.max_steps=5000",
        "rerun=true",
        "output_dir=elsewhere",
        "experiment=verdict",
    ],
)
def test_overrides_outside_the_fingerprint_are_not_in_the_name(override):
    assert run_name("verdict", [override, "seed=2"]) == "verdict,seed=2"


def test_name_has_no_slash_or_space_from_its_overrides():
    name = run_name("text", ["model/norm=rms", "data.path=/home/me/my notes/*.txt"])
    assert "/" not in name
    assert " " not in name
    assert name.startswith("text,model-norm=rms")


def test_long_names_are_cut_and_stay_different():
    words = [f"model.part{i}={i}" for i in range(40)]
    first, second = run_name("x", [*words, "seed=1"]), run_name("x", [*words, "seed=2"])
    assert len(first) == len(second) == LONGEST_NAME
    assert first != second


def test_record_is_saved_and_extended(tmp_path):
    run = Run(tmp_path / "run")
    assert run.status == "new"
    run.start(fingerprint="abc", seed=1, command="llm train", data="def")
    run.finish("done", steps=10)
    again = Run(tmp_path / "run")
    assert again.status == "done"
    assert (again.record["fingerprint"], again.record["steps"], again.record["seed"]) == (
        "abc",
        10,
        1,
    )
    assert "torch" in again.record["versions"]
    assert [file.name for file in again.path.iterdir()] == ["run.json"], "no partial file stays"
    json.loads((again.path / "run.json").read_text())


def test_archiving_keeps_every_earlier_run(tmp_path):
    run = Run(tmp_path / "run")
    assert run.archive() is None, "there was no run to archive"
    for number in (1, 2):
        run.update(status="done")
        assert run.archive() == tmp_path / f"run~{number}"
        assert run.status == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"run~1", "run~2"}


def test_archived_runs_are_not_listed(tmp_path):
    Run(tmp_path / "pretraining" / "one").update(status="done")
    Run(tmp_path / "pretraining" / "one~1").update(status="done")
    assert [run.path.name for run in list_runs(tmp_path)] == ["one"]


def test_directory_is_claimed_by_one_process_at_a_time(tmp_path):
    run = Run(tmp_path / "task" / "run")
    with (
        run.claimed(),
        pytest.raises(ClaimedRunError, match="another process is training in this folder"),
        run.claimed(),
    ):
        pass
    with run.claimed():
        run.update(status="done")


def test_reading_the_state_of_a_run_does_not_change_its_folder(tmp_path):
    """The folder may be read-only, or belong to another sweep."""
    run = Run(tmp_path / "run")
    run.update(status="running")
    assert run.state == "interrupted"
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    with run.claimed():
        assert Run(run.path).state == "running"
    assert run.state == "interrupted"


def test_state_comes_from_the_record_if_the_lock_cannot_be_read(tmp_path):
    run = Run(tmp_path / "run")
    run.update(status="running")
    (tmp_path / "elsewhere").touch()
    (tmp_path / ".run.lock").symlink_to(tmp_path / "elsewhere")  # locks do not follow links
    assert run.state == "running"


def test_an_experiment_is_named_for_the_task_that_it_trains():
    with initialize_config_module("llm.conf", version_base="1.3"):
        for task, experiment in EXPERIMENTS.items():
            config = compose("train", [f"experiment={experiment}"], return_hydra_config=True)
            assert config.hydra.runtime.choices.task == task
