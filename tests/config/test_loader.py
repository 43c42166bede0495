"""An untrusted folder of configs may not set Hydra's keys or trust, or read values from this machine."""

import pickle
import sys
from pathlib import Path

import pytest
from hydra.types import RunMode
from small_runs import checked_points

import llm.__main__ as command
from llm.config.errors import ConfigError
from llm.config.loader import CONF, open_loader


class Payload:
    """An object whose pickle executes code when it is loaded."""

    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


@pytest.fixture
def llm(tmp_path, monkeypatch, capsys):
    """llm({file: text}, "train", …): run a command with a folder of configs, in a folder that contains a payload."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "payload.pt").write_bytes(pickle.dumps(Payload()))

    def call(files, which, *words):
        for name, text in files.items():
            file = tmp_path / "theirs" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        folder = ["--config-dir", "theirs"] if files else []
        monkeypatch.setattr(sys, "argv", ["llm", which, *folder, *words])
        status = 0
        try:
            command.main()
        except SystemExit as error:
            status = error.code or 0
        out, err = capsys.readouterr()
        made = {file.name for file in tmp_path.iterdir()} - {"theirs", "payload.pt"}
        return status, out, err, made

    return call


GLOBAL = "# @package _global_\n"
CALLBACK = "hydra: {callbacks: {e: {_target_: torch.load, f: payload.pt, weights_only: false}}}\n"
EVERYTHING = """
defaults: [override /hydra/launcher: submitit_slurm, override /hydra/sweeper: optuna]
trust: [numpy]
weights: {trust: [numpy]}
hydra:
  mode: MULTIRUN
  run: {dir: made}
  job: {chdir: true, env_set: {PYTHONPATH: theirs}, env_copy: [HOME]}
  output_subdir: made
  callbacks: {e: {_target_: pathlib.Path.write_text}}
  job_logging: {handlers: {console: {class: logging.FileHandler, filename: made}}}
  overrides: {task: ['trust=[numpy]']}
  launcher: {setup: [touch made], partition: "a\\ntouch made", additional_parameters: {wrap: true}}
  sweeper:
    custom_search_space: os.system
    params: {trust: '[numpy]', hydra.job.chdir: 'true', +reward@hydra.callbacks.e: length}
"""
LINES = {
    *("trust", "weights.trust", "hydra.run.dir", "hydra.job.chdir", "hydra.job.env_set.PYTHONPATH"),
    "hydra.job.env_set.HOME",
    *("hydra.job.env_copy", "hydra.output_subdir", "hydra.callbacks.e._target_", "hydra.overrides"),
    "hydra.job_logging.handlers.console.class",
    "hydra.job_logging.handlers.console.filename",
    *(f"hydra.launcher.{key}" for key in ("setup", "partition")),
    "hydra.launcher.additional_parameters.wrap",
    "hydra.sweeper.custom_search_space",
    *(
        f"hydra.sweeper.params.{key}"
        for key in ("trust", "hydra.job.chdir", "+reward@hydra.callbacks.e")
    ),
}


def test_all_forbidden_keys_of_a_file_are_named_at_once(llm):
    """All keys of a node are named, not only the first."""
    words = ["+reward=r", "--cfg", "job"]
    status, out, err, made = llm({"reward/r.yaml": GLOBAL + EVERYTHING}, "train", *words)
    assert (status, out, made) == (2, "", set())
    assert {line.partition(": ")[0] for line in err.splitlines()} == LINES


PRIMARY = "defaults: [train, override hydra/job_logging: theirs]\n"
FILES = {
    "mine.yaml": PRIMARY,
    "hydra/job_logging/theirs.yaml": "root: {handlers: [h]}\nhandlers: {h: {class: logging.FileHandler}}",
    "searching.yaml": "defaults: [train]\nhydra: {searchpath: ['pkg://theirs_package']}",
    "reward/package.yaml": "# @package hydra.callbacks.e\n_target_: torch.load\nf: payload.pt\n",
    "data/outside.yaml": "defaults: [../../secret]",
    "data/lookups.yaml": "a: ${oc.env:HOME}\nb: ${oc.select:x,${oc.env:HOME}}\nc: [\"${oc.decode:'x'}\"]\n"
    "o: oc\nd: '${${.o}.env:HOME}'\n",
    "data/bomb.yaml": "a0: &a0 [x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)),
    "data/ring.yaml": "a: &a [*a]\n",
    "data/option.yaml": "defaults: ['optional x: ${oc.env:HOME}']\n",
}


@pytest.mark.parametrize(
    ("words", "count", "line"),
    [
        (["--config-name", "mine"], 1, "hydra/job_logging=theirs: is not installed"),
        (["--config-name", "searching"], 1, "hydra.searchpath: searching.yaml may not set it"),
        (["+reward=package"], 2, "hydra.callbacks.e._target_: a file of a --config-dir may not"),
        (["data=outside"], 1, "data/../../secret: is outside the folder of configs"),
        (["data=lookups"], 4, "FOLDER/data/lookups.yaml: ${oc.env:HOME} would read a value from"),
        (
            ["data=option"],
            1,
            "FOLDER/data/option.yaml: optional x: ${oc.env:HOME} would read a value from",
        ),
    ],
)
def test_no_user_file_bypasses_the_check(llm, tmp_path, words, count, line):
    status, out, err, made = llm(FILES, "train", *words)
    assert (status, out, made) == (2, "", set())
    assert len(err.splitlines()) == count
    assert err.startswith(line.replace("FOLDER", str(tmp_path / "theirs")))


@pytest.mark.parametrize(
    "name", ["generate", "chat", "classify", "evaluate", "compare", "export", "plan"]
)
def test_every_command_checks_hydras_section(llm, name):
    """Hydra starts a callback before any code of ours runs."""
    files = {"reward/r.yaml": GLOBAL + CALLBACK}
    word = "reward=r" if name == "generate" else "+reward=r"
    status, _, err, made = llm(files, name, word)
    assert (status, made) == (2, set())
    assert err.startswith("hydra.callbacks.e")


@pytest.mark.parametrize(
    "words",
    [
        ["--cfg", "job"],
        ["-m", "seed=choice(1,2)", "hydra/sweeper=optuna"],
        ["sweep=sizes"],
    ],
)
def test_hydras_section_is_checked_for_every_flag(llm, words):
    status, _, err, made = llm({"reward/r.yaml": GLOBAL + CALLBACK}, "train", "+reward=r", *words)
    assert (status, made) == (2, set())
    assert err.startswith("hydra.callbacks.e")


def test_user_file_has_a_maximum_size(llm):
    status, _, err, _ = llm({"reward/r.yaml": "a: 1 #" + "x" * 2**20}, "train", "+reward=r")
    assert (status, err.count("\n")) == (2, 1)
    assert "reward/r.yaml: has 1,048,582 bytes, more than the maximum of 1,048,576" in err


@pytest.mark.parametrize("words", [("--help",), ("--info", "all")])
def test_file_names_in_a_folder_are_printed_escaped(llm, words):
    status, out, err, _ = llm({"optimizer/\x1b[2J.yaml": "a: 1"}, "train", *words)
    assert status == 0, err
    assert "\x1b" not in out + err
    assert words[0] != "--help" or "␛[2J" in out


def test_point_composed_by_a_launcher_is_checked(tmp_path):
    """A searching sweeper composes its points during the sweep."""
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "r.yaml").write_text(GLOBAL + CALLBACK)
    loader = open_loader(CONF, str(tmp_path))
    shared = loader.load_configuration("train", [], RunMode.MULTIRUN)
    with pytest.raises(ConfigError, match=r"^hydra\.callbacks\.e"):
        loader.load_sweep_config(shared, ["+reward=r"])


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (
            "+hydra.callbacks.e={_target_:torch.load,f:payload.pt}",
            "hydra.callbacks.e: cannot be set",
        ),
        ("++hydra={callbacks:{e:{_target_:torch.load}}}", "hydra: cannot be set"),
        ("hydra.job_logging.root.level=DEBUG", "hydra.job_logging.root.level: cannot be set"),
        ("hydra/job_logging=default", "hydra.job_logging: cannot be set"),
        ("hydra.searchpath=[pkg://os]", "hydra.searchpath: cannot be set; add a folder"),
        ("hydra.job.chdir=true", "hydra.job.chdir: cannot be set"),
        ("+hydra.job.env_set.LLM_SWEEP_STOP=made", "hydra.job.env_set.LLM_SWEEP_STOP: cannot be"),
        ("+reward@hydra.callbacks.e=length", "hydra.callbacks.e: cannot be set"),
        ("hydra.launcher._target_=torch.load", "hydra.launcher._target_: torch.load is not a"),
    ],
)
def test_forbidden_hydra_keys_on_the_command_line_are_refused(llm, word, line):
    status, out, err, made = llm({}, "train", word)
    assert (status, out, made) == (2, "", set())
    assert err.startswith(line)


def test_folder_may_contain_a_sweep_and_launcher_settings(tmp_path):
    files = {
        "sweep/mine.yaml": GLOBAL + "defaults: [override /hydra/launcher: submitit_slurm]\n"
        "hydra:\n  mode: MULTIRUN\n  sweeper: {params: {seed: '1,2'}}\n"
        "  launcher: {partition: gpu, gpus_per_node: 8, timeout_min: 90}\n",
        "experiment/mine.yaml": GLOBAL + "name: ${hydra:runtime.choices.model}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    loader = open_loader(CONF, str(tmp_path))
    points = checked_points(loader, "train", ["sweep=mine", "experiment=mine"], is_sweep=True)
    assert [(point.composed.config.seed, point.composed.config.name) for point in points] == [
        (1, "gpt"),
        (2, "gpt"),
    ]


def test_lookups_are_allowed_on_the_command_line(llm, monkeypatch):
    monkeypatch.setenv("LLM_TEST_SEED", "7")
    status, _, err, _ = llm({}, "train", "seed=${oc.env:LLM_TEST_SEED}x")
    assert status == 2
    assert "seed: '7x' is not an int" in err
