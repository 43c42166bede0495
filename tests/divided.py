"""Small training runs that compare several ranks with one."""

import csv
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from ranks import on_ranks
from small_runs import run_command

from llm import distributed

WORDS = "the a cat dog sat ran on under mat house and then it was very old".split()
SMALL = [
    *("size=nano", "size.num_heads=4", "size.dim=32", "size.context_length=16", "tokenizer=byte"),
    *("data=text", "data.batch_size=4", "hardware.precision=32", "hardware.accelerator=cpu"),
    *("model=gpt2", "model.dropout=0", "optimizer=adamw", "schedule=constant"),
    *("schedule.warmup_steps=0", "callbacks.samples=null", "callbacks.picture=null"),
    *("trainer.max_steps=4", "trainer.val_every=2", "trainer.log_every=1"),
]
NAMES = ("step", "train/loss", "train/gradient_norm", "val/loss", "tokens")
# Products in bfloat16 would turn differences in the seventh digit into differences in the fourth.
MUON = ("optimizer=muon", "optimizer.precision=float32")

Curve = list[dict[str, float]]


def write_text(folder: Path) -> str:
    """Write a small text file, and return the override that names it."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=8)) + "." for _ in range(60)]
    path = folder / "text.txt"
    path.write_text("\n".join(lines), "utf-8")
    return f"data.path={path}"


def write_messages(folder: Path) -> Path:
    """Write a file of short messages of three classes."""
    path = folder / "messages.csv"
    rows = [f"{'abc'[n % 3]},{word} {n}" for n, word in enumerate(WORDS * 2)]
    path.write_text("\n".join(["label,text", *rows]), "utf-8")
    return path


def train(directory: Path, words: Sequence[str]) -> Curve:
    """Return the logged losses and norms of a small run."""
    small = dict(word.split("=") for word in SMALL)
    if "weights=run" in words:  # the model is that of the run
        small = {
            key: v for key, v in small.items() if not key.startswith(("size", "model", "token"))
        }
    small = [
        f"{key}={v}" for key, v in small.items() if not any(w.startswith(f"{key}=") for w in words)
    ]
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", [*small, *words])
    run = run_command(config, directory, words)
    distributed.barrier()  # the first rank has written its last line
    with run.metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(row[name] or "nan") for name in NAMES} for row in rows]


def train_all(folder: Path, runs: Mapping[str, Sequence[str]]) -> dict[str, Curve]:
    """Train several runs, one after another, in directories with their names."""
    return {name: train(folder / name, words) for name, words in runs.items()}


def assert_learn_as_one(
    folder: Path,
    runs: Mapping[str, Sequence[str]],
    divided: Mapping[int, Mapping[str, Sequence[str]]],
) -> None:
    """Require that runs on several ranks have the same metrics as on one.

    Args:
        folder: folder for the run directories.
        runs: the overrides of each run.
        divided: for each number of ranks, the runs to train and the overrides that divide each.
    """
    alone = train_all(folder / "1", runs)
    for world, words in divided.items():
        several = {name: (*runs[name], *words[name]) for name in words}
        for name, curve in on_ranks(world, train_all, folder / str(world), several)[0].items():
            assert_alike(curve, alone[name])


def assert_alike(found: Curve, expected: Curve) -> None:
    """Require the same metrics at the same steps, to 1e-5."""
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-5, nan_ok=True)
