"""Data parallelism: the same training on one, two and four ranks, with resume on another number."""

import csv
import json
import math
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from lightning.pytorch.callbacks import Callback
from ranks import on_ranks
from small_runs import run_command

from llm import distributed
from llm.runs import ReadOnlyRun, Run
from llm.training import lifecycle

WORDS = "the a cat dog sat ran on under mat house and then it was very old".split()
SMALL = [
    *("size=nano", "size.dim=32", "size.context_length=80", "model=gpt2", "tokenizer=byte"),
    *("data.batch_size=4", "hardware.precision=32", "hardware.accelerator=cpu", "model.dropout=0"),
    *(
        "optimizer=adamw",
        "schedule=cosine",
        "schedule.warmup_steps=2",
        "callbacks.samples=null",
        "callbacks.picture=null",
    ),
    *("trainer.max_steps=6", "trainer.val_every=3", "trainer.log_every=1"),
]
MEASURED = ("speed/", "memory/")  # metrics that depend on the clock and the machine


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path: Path) -> tuple[str, ...]:
    """A text whose number of windows is not divisible by any number of ranks."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=8)) + "." for _ in range(60)]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines), "utf-8")
    return "data=text", f"data.path={path}", "size.context_length=16"


@pytest.fixture
def questions(tmp_path: Path) -> tuple[str, ...]:
    """Questions with responses of very different lengths, an odd number of them for validation."""
    rows = [
        {"instruction": f"{word}?", "output": word * (1 + n % 7)}
        for n, word in enumerate(WORDS * 2)
    ]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(rows), "utf-8")
    data = ("task=sft", "data=instruction", f"data.path={path}", "data/template=chatml")
    return *data, "data.validation_fraction=0.1", "data.test_fraction=0"


@pytest.fixture
def messages(tmp_path: Path) -> tuple[str, ...]:
    """Messages of two classes, with fewer for validation and test than there are ranks."""
    path = tmp_path / "messages.csv"
    path.write_text(
        "label,text\n" + "\n".join(f"{'ab'[n % 3 == 0]},{w} {n}" for n, w in enumerate(WORDS * 2))
    )
    data = (
        "task=classification",
        "data=labelled",
        f"data.path={path}",
        "data.balance=weights",
    )
    no_dropout = (
        "task.model.dropout=0",
        "task.model.token_dropout=0",
    )  # each rank draws other random numbers
    return *data, *no_dropout, "data.validation_fraction=0.1", "data.test_fraction=0.1"


def train(directory: Path, words: Sequence[str], stop: int | None = None) -> list[dict[str, str]]:
    """Return the logged metrics of a small run, optionally stopped during a step on its last rank."""
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", override(SMALL, words))
    original = lifecycle.choose_callbacks
    if stop is not None and distributed.world().rank == distributed.world().size - 1:
        lifecycle.choose_callbacks = lambda *given: [*original(*given), Stop(stop)]
    try:
        run = run_command(config, directory, words)
    except SystemExit:
        return []
    finally:
        lifecycle.choose_callbacks = original
    with run.metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in rows]


def override(words: Sequence[str], new: Sequence[str]) -> list[str]:
    """Combine words of a command line; of two with the same key, the later one counts."""
    return list({word.partition("=")[0]: word for word in (*words, *new)}.values())


class Stop(Callback):
    """Send SIGTERM to this process during a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_backward(self, trainer, *_) -> None:
        if trainer.global_step + 1 == self.step:
            self.step = 0
            signal.raise_signal(signal.SIGTERM)


def in_parts(directory: Path, words: Sequence[str]) -> list[dict[str, str]]:
    """Train a run that is stopped during its second step, and resume it."""
    assert train(directory, words, stop=2) == []
    if distributed.is_first():
        record = json.loads((directory / "run.json").read_text())
        # The ranks agree to stop at step 3.
        assert (record["status"], record["steps"]) == ("interrupted", 3)
    return train(directory, words)


def whole_and_in_parts(folder: Path, words: Sequence[str]) -> list[list[dict[str, str]]]:
    return [train(folder / "whole", words), in_parts(folder / "parts", words)]


def several(folder: Path, runs: Sequence[Sequence[str]]) -> list[list[dict[str, str]]]:
    """Train several runs one after another on the same ranks."""
    return [train(folder / str(number), words) for number, words in enumerate(runs)]


def assert_alike(rows: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    """Require equality to 1e-5, except for tokens: each rank pads to the longest of its own rows."""
    assert len(rows) == len(expected) > 0
    for row, other in zip(rows, expected, strict=True):
        numbers, others = (
            {k: float(v or math.nan) for k, v in each.items() if k != "tokens"}
            for each in (row, other)
        )
        assert numbers == pytest.approx(others, rel=1e-5, abs=1e-6, nan_ok=True)


def test_two_and_four_ranks_learn_as_one(text, questions, messages, tmp_path):
    """Includes accumulation, and batches with different numbers of targets."""
    runs = [
        text,
        (*text, "trainer.accumulate=2", "model=llama"),
        (*questions, "trainer.accumulate=2"),
        messages,
    ]
    alone = several(tmp_path / "1", runs)
    # Four ranks train only the last two, whose batches have different numbers of targets.
    for world, first in ((2, 0), (4, 2)):
        ddp = [(*words, "hardware=ddp") for words in runs[first:]]
        found = on_ranks(world, several, tmp_path / str(world), ddp)[0]
        for rows, expected in zip(found, alone[first:], strict=True):
            assert_alike(rows, expected)


def test_resumed_run_equals_the_uninterrupted_one_to_the_bit(text, tmp_path):
    words = (
        *text,
        "hardware=ddp",
        "model.dropout=0.3",
        "trainer.log_every=2",
        "trainer.accumulate=2",
    )
    whole, parts = on_ranks(2, whole_and_in_parts, tmp_path, words)[0]
    assert parts == whole


def test_ranks_that_read_an_older_record_also_find_the_run_done(text, tmp_path):
    train(tmp_path, text)
    on_ranks(2, train_with_an_old_record, tmp_path, (*text, "hardware=ddp"), timeout=60)


def train_with_an_old_record(directory: Path, words: Sequence[str]) -> None:
    """Train; all ranks but the first read a record in which the run has not ended."""

    def read(run: ReadOnlyRun) -> None:
        Run.__post_init__(run)
        run.record["status"] = "running"

    ReadOnlyRun.__post_init__ = read
    train(directory, words)


def test_checkpoint_resumes_on_more_and_on_fewer_ranks(text, tmp_path):
    alone = train(tmp_path / "alone", text)
    assert alone[-1]["tokens"] == str(6 * 4 * 16.0)
    ddp = (*text, "hardware=ddp")
    for name in ("one", "four"):
        assert on_ranks(2, train, tmp_path / name, ddp, 2) == [[], []]
    assert_alike(train(tmp_path / "one", text), alone)
    moved = on_ranks(4, train, tmp_path / "four", ddp)[0]
    assert_alike(moved, alone)
    assert moved[-1]["tokens"] == alone[-1]["tokens"]


def test_streams_and_their_states_are_shared_by_the_ranks(text, tmp_path):
    """Ranks carry the states of their own rows; a checkpoint has those of all rows, for any number of ranks."""
    words = (
        *text,
        "model=lstm",
        "data/order=contiguous",
        "trainer.accumulate=2",
        "optimizer.lr=0.03",
    )
    alone = train(tmp_path / "alone", words)
    found = on_ranks(2, train, tmp_path / "two", (*words, "hardware=ddp"))[0]
    assert_alike(found, alone)
    assert on_ranks(2, train, tmp_path / "moved", (*words, "hardware=ddp"), 2) == [[], []]
    assert_alike(train(tmp_path / "moved", words), alone)
