"""Data parallelism: the same training on one, two and four ranks."""

import csv
import random
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from ranks import on_ranks

from llm.apps import training

WORDS = "the a cat dog sat ran on under mat house and then it was very old".split()
SMALL = [
    *("size=nano", "size.dim=32", "size.context_length=16", "model=gpt2", "tokenizer=byte"),
    *("data.batch_size=4", "hardware.precision=32", "hardware.accelerator=cpu"),
    *("optimizer=adamw", "schedule=cosine", "schedule.warmup_steps=2", "callbacks.samples=null"),
    *("trainer.max_steps=6", "trainer.val_every=3", "trainer.log_every=1"),
]


@pytest.fixture
def text(tmp_path: Path, monkeypatch) -> Path:
    """Sentences whose number of windows no number of ranks divides."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=8)) + "." for _ in range(60)]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines), "utf-8")
    return path


def train(directory: Path, *words: str) -> list[dict[str, float]]:
    """The logged losses and norms of a small run."""
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", [*SMALL, *words])
    run = training.train(config, directory, words)
    with run.metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("step", "train/loss", "train/gradient_norm", "val/loss", "tokens")
    return [{name: float(row[name] or "nan") for name in names} for row in rows]


def test_one_two_and_four_ranks_learn_alike(text, tmp_path):
    words = ("data=text", f"data.path={text}", "model.dropout=0")
    alone = train(tmp_path / "1", *words)
    for world in (2, 4):
        run = on_ranks(world, train, tmp_path / str(world), *words, "hardware=ddp")[0]
        assert len(run) == len(alone)
        for row, expected in zip(run, alone, strict=True):
            assert row == pytest.approx(expected, rel=1e-5, nan_ok=True)
