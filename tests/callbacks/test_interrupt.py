"""Signals during training: the first one stops the run after a step, the second one at once."""

import signal

import lightning as L
import pytest
from torch import nn

from llm.callbacks.interrupt import Interrupt


@pytest.fixture
def listening():
    before = signal.getsignal(signal.SIGINT)
    callback, trainer, module = Interrupt(), L.Trainer(logger=False), L.LightningModule()
    module.layer = nn.Linear(1, 1)
    callback.on_fit_start(trainer, module)
    yield callback
    callback.teardown(trainer, module, "fit")
    assert signal.getsignal(signal.SIGINT) is before


def test_the_first_signal_is_remembered_and_the_second_stops_at_once(listening, capsys):
    signal.raise_signal(signal.SIGINT)
    assert listening.received is signal.SIGINT
    assert (
        "finishing this step and saving; send it again to stop at once" in capsys.readouterr().err
    )
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
