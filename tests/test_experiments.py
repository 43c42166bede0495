"""The commands of the studies, with few steps and small models: each finishes and prints its table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_folders import SHAPES, make_folder

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
CPU = ("hardware=cpu", "hardware.precision=32", "hardware.threads=1")
SHORT = ("trainer.max_steps=2", "trainer.val_every=1", "trainer.val_batches=1")
BASE = "outputs/pretraining/base"


@pytest.fixture(scope="module")
def run(tmp_path_factory, shared_data):
    """Run Python in one folder, and return what it prints."""
    folder = tmp_path_factory.mktemp("studies")
    environment = os.environ | {
        "LLM_CACHE": str(folder / "cache"),
        "TIKTOKEN_CACHE_DIR": str(shared_data / "tiktoken"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",  # a table has a column of each setting
    }
    (folder / "cache").mkdir()
    for file in shared_data.iterdir():
        if file.is_file():
            (folder / "cache" / file.name).symlink_to(file)

    def run_python(*words: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run_python


@pytest.fixture(scope="module")
def base(run):
    """A pretrained model for the studies of finetuning."""
    words = (
        "size=nano",
        "size.context_length=256",
        "tokenizer=byte",
        "data=shakespeare",
        "name=base",
    )
    run("-m", "llm", "train", *words, *CPU, *SHORT)
    return BASE


def test_architectures_are_compared(run):
    conf = EXPERIMENTS / "architectures" / "conf"
    words = ("sweep=gpt2_to_llama", "output_dir=outputs/architectures", "size=nano", "seed=1")
    run("-m", "llm", "train", "--config-dir", conf, *words, *CPU, *SHORT)
    table = run("-m", "llm", "compare", "outputs/architectures", "output=architectures")
    for name in (
        "gpt2",
        "plus_rotary",
        "plus_rms",
        "plus_swiglu",
        "plus_grouping",
        "llama_grouped",
    ):
        assert f" {name} " in table


def test_feed_forward_layers_are_compared_at_equal_time(run):
    study = EXPERIMENTS / "architectures" / "equal_time.py"
    words = ("size=nano", *CPU)
    assert "--steps " in run(study, "--measure", "--rounds", "4", "--", *words)
    table = run(study, "--steps", "2", "1", "--seeds", "2", "--", *words)
    rows = [line.split("|")[1:4] for line in table.splitlines() if "±" in line]
    assert [steps.strip() for _, steps, _ in rows] == ["2", "1", ""]


def test_spam_study_has_a_row_per_method(run, base):
    study = EXPERIMENTS / "spam" / "study.py"
    table = run(study, "--base", base, *CPU, *SHORT)
    names = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert names[1:6] == ["all", "last_block", "head", "lora", "prefix"]
    assert "logistic regression, tf-idf: " in table


def test_instruct_study_has_both_tables_and_responses(run, base):
    study = EXPERIMENTS / "instruct" / "study.py"
    report = run(
        study, "--base", base, "data.malformed=skip", *CPU, *SHORT
    )  # in bytes, some texts are longer than the context
    assert report.count("Test part: ") == 2
    assert "| question | before | after | reference |" in report


def test_optimizer_study_has_a_row_per_optimizer(run):
    study = EXPERIMENTS / "optimizers" / "study.py"
    table = run(study, "--picture=rates.png", "optimizer.lr=0.01", "size=nano", *CPU, *SHORT)
    rows = [line for line in table.splitlines() if line.startswith("| ") and "±" in line]
    assert len(rows) == 6


def test_verdict_is_evaluated(run):
    words = ("experiment=verdict", "size=nano", "trainer.max_epochs=1", "name=verdict", "seed=0")
    run("-m", "llm", "train", *words, *CPU)
    assert "| this run | " in run(
        EXPERIMENTS / "verdict" / "evaluate.py", "outputs/pretraining/verdict"
    )


def test_generation_speed_is_compared(run):
    pytest.importorskip("transformers")
    folder = EXPERIMENTS / "generation_speed"
    words = ("--new-tokens", "4", "--rounds", "1", "--layers", "1")
    assert "| `llm.generation.decoding` | " in run(folder / "benchmark.py", *words)
    assert "| 1 | " in run(folder / "layout.py", "--tokens", "1")


def test_families_are_compared_in_loss_and_time(run):
    folder = EXPERIMENTS / "families"
    words = ("--families", "gpt2", "lstm", "--output", "outputs/families")
    words += ("--settings", "outputs/families.yaml", "--contexts", "512")
    run(folder / "study.py", "--select", *words, "--", *CPU, *SHORT)
    table = run(folder / "study.py", *words, "--", *CPU, *SHORT)
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["gpt2", "lstm"]
    assert all(row.count("±") == 1 for row in rows)
    words = ("--families", "gpt2", "lstm", "--contexts", "128", "--rounds", "1")
    tables = run(folder / "measure.py", *words, "--new-tokens", "2")
    assert tables.count("| `lstm` | ") == 4


def test_startup_is_measured(run):
    measured = run(EXPERIMENTS / "startup" / "measure.py", "--rounds", "1")
    assert "first step" in measured
    assert "first token" in measured


def test_local_attention_is_measured(run):
    words = ("--rounds", "1", "--window", "16", "--lengths", "16", "128")
    assert "| 128 | " in run(EXPERIMENTS / "local_attention" / "measure.py", *words)


def test_pretrained_model_says_the_same_in_every_format(run, tmp_path):
    folder = make_folder(SHAPES["smollm2"]._replace(dtype=torch.float32), tmp_path / "published")
    rows = [{"instruction": f"the {word}?", "output": f"a {word}."} for word in "abcdefghijkl"]
    (tmp_path / "talk.json").write_text(json.dumps(rows))
    words = ("--data", tmp_path / "talk.json", "--steps", "1", "--tokens", "4")
    table = run(EXPERIMENTS / "pretrained" / "study.py", folder, *words)
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 10
    assert all(row.split(" | ")[1] == "yes" for row in rows), table
