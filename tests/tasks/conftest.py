"""Small finetuning runs: nano GPT, bytes, ChatML, a few made-up pairs and conversations."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from lightning.pytorch.callbacks import Callback

from llm.apps import training
from llm.runs import Run

WORDS = "cat dog hen cow pig fox owl ant bee elk ape rat".split()
SMALL = [
    *("size=nano", "size.dim=32", "size.context_length=80", "model=gpt2", "tokenizer=byte"),
    *("data/template=chatml", "data.batch_size=4", "data.validation_fraction=0.2"),
    *("hardware=cpu", "hardware.precision=32", "hardware.threads=1", "callbacks.samples=null"),
    *("optimizer=adamw", "schedule=constant", "schedule.warmup_steps=0", "model.dropout=0.1"),
    *("trainer.max_steps=9", "trainer.val_every=3", "trainer.log_every=1"),
]


class InterruptAt(Callback):
    """Ctrl-C while a step is under way."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_backward(self, trainer, *_) -> None:
        if trainer.global_step + 1 == self.step:
            import signal

            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Thirty-six questions, the polite answer chosen, the rude one rejected."""
    rows = [
        {"instruction": f"{word} {n}?", "chosen": f"a {word}, sir", "rejected": f"{word}, you fool"}
        for word in WORDS
        for n in range(3)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Run]:
    """train("name", "task=preference", …): a small run of `llm train` in a directory of that name."""

    def train(name: str, *words: str) -> Run:
        given = {word.split("=")[0] for word in words}
        words = (*(word for word in SMALL if word.split("=")[0] not in given), *words)
        if any(word.startswith("weights.path") for word in words):  # they say what the model is
            words = tuple(w for w in words if not w.startswith(("model=", "size", "tokenizer")))
        with initialize_config_module("llm.conf", version_base="1.3"):
            config = compose("train", [*words])
        return training.train(config, tmp_path / name, words)

    return train


@pytest.fixture
def interrupted(train, monkeypatch) -> Callable[..., Run]:
    """As `train`, but stopped during a step, and then gone on with."""

    def train_in_parts(name: str, *words: str, step: int) -> Run:
        original = training.make_callbacks
        with monkeypatch.context() as patch:
            stop = InterruptAt(step)
            patch.setattr(training, "make_callbacks", lambda config: [*original(config), stop])
            with pytest.raises(SystemExit):
                train(name, *words)
        return train(name, *words)

    return train_in_parts


@pytest.fixture
def logged() -> Callable[[Run], list[dict[str, str]]]:
    """The rows of metrics.csv without what depends on the clock and the machine."""

    def rows(run: Run) -> list[dict[str, str]]:
        with run.metrics.open(newline="") as file:
            return [
                {k: v for k, v in row.items() if not k.startswith(("speed/", "memory/"))}
                for row in csv.DictReader(file)
            ]

    return rows
