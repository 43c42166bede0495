"""Values outside the range of a parameter are refused with their key, before a run directory is made."""

import sys

import pytest
from omegaconf import OmegaConf

import llm.__main__ as command
from llm.config.ranges import RANGES, out_of_range
from llm.training.config_rules import project_name_is_valid

UNIT = "0 or more and less than 1"
COMMANDS = {
    "": {
        "seed=-1": "seed: -1 is out of range; give 0 or more and less than 4294967296",
        "optimizer.lr=inf": "optimizer.lr: inf is not a finite number; use a finite number",
        "optimizer.momentum=1.5": f"optimizer.momentum: 1.5 is out of range; give {UNIT}",
        "model.dropout=nan": "model.dropout: nan is not a finite number; use a finite number",
        "model.norm.eps=-1": "model.norm.eps: -1 is out of range; give 0 or more",
        "model.position.theta=0": "model.position.theta: 0 is out of range; give more than 0",
        "model.init.std=-1": "model.init.std: -1 is out of range; give more than 0",
        "schedule.warmup_steps=-5": "schedule.warmup_steps: -5 is out of range; give 0 or more",
        "schedule.decay_fraction=2": (
            "schedule.decay_fraction: 2 is out of range; give 0 or more and at most 1"
        ),
        "data.batch_size=0": "data.batch_size: 0 is out of range; give 1 or more",
        "model.num_layers=1000000000": (
            "model.num_layers: 1000000000 is out of range; give 1 or more and at most 1024"
        ),
        "size.context_length=1000000000000": (
            "size.context_length: 1000000000000 is out of range; give 1 or more and at most 1073741824"
        ),
        "tokenizer.vocab_size=100000000000": (
            "tokenizer.vocab_size: 100000000000 is out of range; give 1 or more and at most 16777216"
        ),
        "hardware.threads=1000000000": (
            "hardware.threads: 1000000000 is out of range; give 1 or more and at most 1024"
        ),
        "data.validation_fraction=nan": (
            "data.validation_fraction: nan is not a finite number; use a finite number"
        ),
        "callbacks.gradients.spike=0": "callbacks.gradients.spike=0.0: is not above 1; use a factor such as 10",
        "callbacks.samples.max_tokens=0": "callbacks.samples.max_tokens=0: is too small; use 1 or more",
        "callbacks.checkpoints.every=-1": (
            "callbacks.checkpoints.every=-1: is not a number of steps; use 1 or more, or null"
        ),
    },
    "logger=wandb": {
        "logger.wandb.project=a/b": (
            "logger.wandb.project: 'a/b' contains /, which W&B refuses; leave it out; set a team in "
            "logger.wandb.entity"
        ),
    },
    "data=text data.path=.": {
        "output_dir=": "output_dir: is empty; set a value, or leave output_dir= out",
        "name=": "name: is empty; set a value, or leave name= out",
        "weights=run weights.path=": "weights.path: is empty; set a value, or leave weights.path= out",
        "~callbacks.random_states": (
            "callbacks.random_states: is left out, so a resumed run would draw other random "
            "numbers; keep it, or leave out callbacks.checkpoints too and save nothing"
        ),
    },
    "model=llama optimizer=adamw": {
        "optimizer.lr=-1": "optimizer.lr: -1 is out of range; give 0 or more",
        "optimizer.betas=[2,3]": (
            f"optimizer.betas[0]: 2 is out of range; give {UNIT}\n"
            f"optimizer.betas[1]: 3 is out of range; give {UNIT}"
        ),
        "+optimizer.eps=-1": "optimizer.eps: -1 is out of range; give 0 or more",
        "model.feed_forward.multiple_of=0": (
            "model.feed_forward.multiple_of: 0 is out of range; give 1 or more and at most 1048576"
        ),
        "callbacks.early_stopping.min_delta=-1": (
            "callbacks.early_stopping.min_delta: -1 is out of range; give 0 or more"
        ),
    },
}


@pytest.mark.parametrize("words", COMMANDS)
def test_numbers_out_of_range_are_refused_before_a_folder_is_made(
    words, tmp_path, monkeypatch, capsys
):
    lines = COMMANDS[words]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["llm", "train", "size=nano", *words.split(), *" ".join(lines).split()]
    )
    with pytest.raises(SystemExit) as error:
        command.main()
    assert error.value.code == 2
    assert sorted(capsys.readouterr().err.splitlines()) == sorted(
        "\n".join(lines.values()).splitlines()
    )
    assert list(tmp_path.iterdir()) == []


def test_wrong_length_is_not_reported_as_an_error_of_the_weights(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.yaml").touch()
    words = ["llm", "generate", f"weights.path={tmp_path}", "max_tokens=-3", "seed=-1"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as error:
        command.main()
    assert error.value.code == 2
    assert sorted(capsys.readouterr().err.splitlines()) == [
        "max_tokens: -3 is out of range; give 0 or more",
        "seed: -1 is out of range; give 0 or more and less than 4294967296",
    ]


@pytest.mark.parametrize(("length", "lines"), [(0, 1), (1, 0), (128, 0), (129, 1)])
def test_a_project_has_a_name_that_is_neither_empty_nor_too_long(length, lines):
    config = {"logger": {"wandb": {"project": "x" * length}, "other": None}}
    found = list(project_name_is_valid(config))
    assert found == [f"logger.wandb.project: has {length} characters; use 1 to 128"] * lines


def test_parameters_of_user_functions_are_not_checked():
    theirs = {"_target_": "mine.reward", "beta": -1, "seed": -1, "parts": {"lr": -1}}
    assert list(out_of_range(OmegaConf.create({"reward": theirs}), ["reward"])) == []
    odd = OmegaConf.create({"reward": theirs | {"x": float("nan")}})
    assert list(out_of_range(odd, ["reward"])) == []


@pytest.mark.parametrize("name", RANGES)
def test_range_contains_the_values_that_it_prints(name):
    allowed = RANGES[name]
    assert float("-inf") not in allowed
    assert 0.5 in allowed or 1 in allowed
