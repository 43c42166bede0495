"""A run that a stranger has made, opened by the command line: nothing outside it is read or written."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from llm import __main__ as command_line
from llm.config.build import build
from llm.runs import Run
from llm.tokenizers.byte import ByteTokenizer
from llm.weights.checkpoint import save_checkpoint

NANO = ["size=nano", "size.dim=16", "model.vocab_size=257", "tokenizer=byte", "hardware=cpu"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run directory with a nano model, as training leaves it."""
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", NANO)
    run = Run(tmp_path_factory.mktemp("strangers") / "run")
    run.update(status="done", steps=3)
    OmegaConf.save(OmegaConf.create(OmegaConf.to_container(config, resolve=True)), run.config)
    ByteTokenizer().save(run.tokenizer)
    model = build(config.model)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    save_checkpoint({"state_dict": state, "global_step": 3}, run.best)
    return run.path


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy of it that may be broken."""
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """refused("generate", …): the line that a command ends with; whatever it is, it is one."""

    def refused(*words: str, status: int = 2) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["llm", *words])
        with pytest.raises(SystemExit) as end:
            command_line.main()
        told = capsys.readouterr().err
        assert end.value.code == status, told
        assert told.count("\n") == 1, told
        return told

    return refused


VERBS = {
    "generate": ("generate", "max_tokens=2", "hardware.accelerator=cpu", "weights.path=RUN"),
    "export": ("export", "output=exported", "weights.path=RUN"),
    "evaluate": ("evaluate", "hardware.accelerator=cpu", "weights.path=RUN"),
    "train": ("train", "weights=run", "hardware=cpu", "name=new", "weights.path=RUN"),
}


def words(verb: str, run: Path) -> list[str]:
    return [word.replace("RUN", str(run)) for word in VERBS[verb]]


@pytest.mark.parametrize(
    ("verb", "place"),
    [
        ("generate", "config.yaml"),
        ("generate", "run.json"),
        ("export", "tokenizer.json"),
        ("evaluate", "responses.json"),
        ("evaluate", "evaluation.json"),
        ("train", "checkpoints"),
    ],
)
def test_a_link_that_leads_out_of_a_run_is_neither_read_nor_written(
    verb, place, run, refused, tmp_path
):
    mine = tmp_path / "mine"
    if (run / place).exists():
        shutil.move(run / place, mine)
    else:
        mine.write_text("mine")
    (run / place).symlink_to(mine)
    assert f"{place}: is a link that leads out of its folder" in refused(*words(verb, run))
    if mine.is_file() and place not in ("config.yaml", "run.json", "tokenizer.json"):
        assert mine.read_text() == "mine"


@pytest.mark.parametrize("place", ["config.yaml", "run.json", "checkpoints/best.ckpt"])
def test_a_pipe_in_a_run_is_not_waited_for(place, run, refused):
    (run / place).unlink()
    os.mkfifo(run / place)
    assert f"{place}: is neither a file nor a folder" in refused(*words("generate", run))
