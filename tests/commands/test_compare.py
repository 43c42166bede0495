import pytest
from hydra import compose, initialize_config_module
from made_runs import make
from omegaconf import OmegaConf
from small_runs import run_command

from llm.config.errors import UserError
from llm.sweeps import Job, Sweep


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """Compare folders below the temporary folder as `llm compare` does."""
    monkeypatch.chdir(tmp_path)

    def compare(*runs, **words):
        with initialize_config_module("llm.conf", version_base="1.3"):
            config = compose("compare", [])
        return run_command(OmegaConf.merge(config, {"runs": [*map(str, runs)], **words}))

    return compare


@pytest.fixture
def sweep(tmp_path):
    runs = [
        make(tmp_path / "runs" / name, settings={"model": name}, request=name)
        for name in ("gpt", "llama")
    ]
    sweep = Sweep(tmp_path / "sweeps" / "s")
    sweep.begin(
        jobs=[
            Job(
                sweep=sweep.path,
                number=n,
                overrides=(f"model={run.path.name}",),
                directory=run.path,
                request=run.path.name,
                identity={},
            )
            for n, run in enumerate(runs)
        ]
    )
    return sweep


def test_a_sweeps_table_is_kept_in_its_folder(compare, sweep, capsys):
    table = compare("sweeps/s")
    assert (sweep.path / "table.csv").read_text() == table.csv()
    out = capsys.readouterr().out
    assert "wrote  sweeps/s/table.csv, sweeps/s/table.md, sweeps/s/loss.png" in out
    assert "best   runs/gpt" in out


def test_other_folders_are_unchanged_without_output(compare, sweep, tmp_path, capsys):
    compare("runs")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["gpt", "llama"]
    assert "output=FOLDER" in capsys.readouterr().out
    compare("runs/gpt", "runs/llama", output="here")
    assert (tmp_path / "here" / "table.md").is_file()


def test_damaged_runs_are_named_below_the_table(compare, tmp_path, capsys):
    make(tmp_path / "runs" / "good")
    make(tmp_path / "runs" / "bad").path.joinpath("run.json").write_text("{")
    compare("runs")
    assert "runs/bad/run.json is damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("runs", "words", "message"),
    [
        ((), {}, "runs: nothing to compare; pass folders"),
        (
            ("runs",),
            {"confidence": 95.0},
            "confidence: 95.0 is out of range; give more than 0 and less than 1",
        ),
        (("runs",), {"watch": True}, "watch: pass one sweep"),
    ],
)
def test_user_errors_are_one_line(compare, runs, words, message):
    with pytest.raises(UserError, match=message):
        compare(*runs, **words)


def test_finished_sweep_is_not_followed(compare, sweep, capsys):
    assert compare("sweeps/s", watch=True).rows
