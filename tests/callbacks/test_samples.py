"""Display of generated texts."""

from unittest.mock import create_autospec

import lightning as L

from llm.callbacks.samples import Samples, read_samples
from llm.tasks.base import Task


class Blank(Samples):
    def write(self, model, data):
        return [("", "\n" * 9), ("say:\n", ""), ("a", "b\n")]


def test_a_blank_text_is_shown_in_one_line(tmp_path, capsys):
    trainer = create_autospec(L.Trainer, instance=True, is_global_zero=True, loggers=[])
    trainer.configure_mock(sanity_checking=False, global_step=3, default_root_dir=tmp_path)
    trainer.datamodule = None
    task = create_autospec(Task, instance=True, model=None, is_sharded=False)
    Blank().on_validation_end(trainer, task)
    shown = [line.strip("│ ") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert shown == ["(empty)", "say:", "(empty)", "ab", ""]
    kept = read_samples(tmp_path / "samples.txt")
    assert kept == [(3, "\n" * 9), (3, "say:\n"), (3, "ab\n")]
