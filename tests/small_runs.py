"""A small run: nano GPT, bytes, a few kilobytes of text, no progress bars, no samples."""

import random
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from hydra import compose, initialize_config_module
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig


def command_of(
    config: DictConfig,
    directory: str | Path = ".",
    overrides: Sequence[str] = (),
    choices: Mapping[str, str | None] | None = None,
    flags: Sequence[str] = (),
) -> Any:
    """Check a composed tree and return its command, as a command line does."""
    from llm.config.budget import give_one_budget
    from llm.config.check import check
    from llm.config.composed import Composed

    config = config.copy()
    give_one_budget(config, overrides)
    return check(Composed(config, list(overrides), choices or {}, str(directory), flags))


def checked_points(
    loader: Any, name: str, words: Sequence[str], *, is_sweep: bool = False
) -> Sequence[Any]:
    """Compose and check a command line; return its command, or each point of its sweep."""
    from llm.config import composition

    def compose_point(words: Sequence[str]) -> Any:
        return composition.check_composed(loader, composition.compose(loader, name, words))

    if not is_sweep:
        return composition.check_points(compose_point, [words])
    master = composition.load_tree(loader, name, words, is_sweep=True)
    jobs = composition.sweep_jobs(loader, master, words)
    return composition.check_points(compose_point, jobs)


def run_command(config: DictConfig, *given: Any) -> Any:
    """Check a composed tree, run its command as a command line does, and return the result."""
    return command_of(config, *given).run()


WORDS = "the a cat dog sat ran on under mat house and then it was very old".split()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text file of regular sentences, from which a model can learn."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=8)) + "." for _ in range(100)]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def composed(text: Path, tmp_path: Path, monkeypatch) -> Callable[..., DictConfig]:
    """Compose `llm train` for a small run with further overrides, and with a picture at its end."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))

    def make(*overrides: str, picture: bool = False) -> DictConfig:
        small = [
            "size=nano",
            "size.dim=32",
            "size.context_length=16",
            "tokenizer=byte",
            "data=text",
            f"data.path={text}",
            "data.batch_size=4",
            "hardware=cpu",
            "hardware.precision=32",
            "hardware.threads=1",
            "optimizer=adamw",
            "schedule=cosine",
            "schedule.warmup_steps=2",
            "model.dropout=0.1",
            "trainer.max_steps=12",
            "trainer.val_every=4",
            "trainer.log_every=3",
            "callbacks.samples=null",
            *([] if picture else ["callbacks.picture=null"]),
        ]
        with initialize_config_module("llm.conf", version_base="1.3"):
            return compose("train", [*small, *overrides])

    return make


class SignalAt(Callback):
    """Send a signal to this process during a step."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.step, self.number, self.sent = step, number, False

    def on_before_backward(self, trainer: L.Trainer, *_) -> None:
        if trainer.global_step + 1 == self.step and not self.sent:
            self.sent = True
            signal.raise_signal(self.number)


@pytest.fixture
def stop_at(monkeypatch):
    """Make the next `train` receive Ctrl-C during a step."""
    from llm.training import lifecycle

    original = lifecycle.choose_callbacks

    def patch(step: int | None, number: int = signal.SIGINT) -> None:
        extra = [] if step is None else [SignalAt(step, number)]
        monkeypatch.setattr(
            lifecycle, "choose_callbacks", lambda *given: [*original(*given), *extra]
        )

    return patch
