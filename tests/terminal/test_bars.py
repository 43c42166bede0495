"""Progress without a terminal."""

from types import SimpleNamespace
from unittest.mock import create_autospec

import lightning as L
import pytest

from llm.callbacks.progress import ProgressBar
from llm.terminal import bars
from llm.terminal.bars import progress_bar


def work(steps: int) -> None:
    with progress_bar() as bar:
        task = bar.add_task("answering", total=steps)
        for _ in range(steps):
            bar.advance(task)


def test_progress_in_a_log_is_a_line_every_ten_seconds(monkeypatch, capsys):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(bars, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    work(7)
    assert capsys.readouterr().err == "answering: 3 of 7\nanswering: 6 of 7\n"


def test_short_task_prints_no_progress(capsys):
    work(7)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("is_first", [True, False])
def test_the_final_test_reports_its_progress_once(monkeypatch, capsys, is_first):
    monkeypatch.setattr(bars, "SECONDS", 0.0)
    trainer = create_autospec(L.Trainer, instance=True, is_global_zero=is_first)
    trainer.num_test_batches = [2]
    module = create_autospec(L.LightningModule, instance=True)
    callback = ProgressBar()
    callback.on_test_start(trainer, module)
    for number in range(2):
        callback.on_test_batch_end(trainer, module, None, None, number)
    expected = "testing: 1 of 2\ntesting: 2 of 2\n"
    assert capsys.readouterr().err == (expected if is_first else "")
