"""A small run: nano GPT, bytes, a few kilobytes of text, no bars, no samples."""

import random
import signal
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
from hydra import compose, initialize_config_module
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

WORDS = "the a cat dog sat ran on under mat house and then it was very old".split()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text file of nonsense sentences, regular enough to learn something from."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=8)) + "." for _ in range(250)]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def composed(text: Path, tmp_path: Path, monkeypatch) -> Callable[..., DictConfig]:
    """Composes `llm train` for a small run, with more overrides as asked, and a picture at its end."""
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
    """Sends a signal to this process while a step is under way."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.step, self.number, self.sent = step, number, False

    def on_before_backward(self, trainer: L.Trainer, *_) -> None:
        if trainer.global_step + 1 == self.step and not self.sent:
            self.sent = True
            signal.raise_signal(self.number)


@pytest.fixture
def stop_at(monkeypatch):
    """Makes the next `train` receive Ctrl-C during a step."""
    from llm.training import lifecycle

    original = lifecycle.make_callbacks

    def patch(step: int | None, number: int = signal.SIGINT) -> None:
        extra = [] if step is None else [SignalAt(step, number)]
        monkeypatch.setattr(lifecycle, "make_callbacks", lambda *given: [*original(*given), *extra])

    return patch
