"""The card in an exported folder says how the model was trained, and its code runs."""

import json
import re
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_module
from small_runs import run_command
from transformers import AutoModelForCausalLM

import llm.weights.model_card as cards
from llm.tokenizers.byte import ByteTokenizer
from llm.units import format_number
from llm.weights.folder_export import write_folder


@pytest.fixture
def exported(composed, tmp_path):
    """Train for two steps, export, and return the run and the folder."""
    run = run_command(composed("trainer.max_steps=2"), tmp_path / "a run", [], {"data": "text"})
    folder = tmp_path / "folder"
    with initialize_config_module("llm.conf", version_base="1.3"):
        words = [f"weights.path='{run.path}'", f"output={folder}"]
        run_command(compose("export", words))
    return run, folder


def test_card_has_data_steps_losses_and_versions(exported):
    run, folder = exported
    card = (folder / "README.md").read_text("utf-8")
    record = json.loads((run.path / "run.json").read_text())
    rows = dict(re.findall(r"^\| (.+) \| (.+) \|$", card, re.MULTILINE))
    assert rows["optimizer steps"] == "2"
    assert rows["data"] == "text"
    assert rows["digest of the data"] == record["data"]
    assert rows["val/loss"] == f"{record['metrics']['val/loss']:.4g}"
    assert rows["torch"] == record["versions"]["torch"]
    # The same matrix as gate and as input is there twice.
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert f"{format_number(theirs.num_parameters())} parameters in the format of Qwen3" in card
    assert str(run.path.parent) not in card


def test_code_of_the_card_runs(exported, monkeypatch):
    _, folder = exported
    code = (folder / "README.md").read_text("utf-8").partition("```python\n")[2].partition("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time")


def test_card_of_an_imported_model_says_nothing_about_training(build, tmp_path):
    write_folder(build("model=llama", vocab_size=257), ByteTokenizer(), folder=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "in the format of Llama" in card
    assert "## Training" not in card


def test_card_leaves_out_what_names_the_machine_of_the_author():
    assert not {"command", "overrides", "process"} & cards.RECORDED.keys()
