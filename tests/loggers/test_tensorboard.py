"""TensorBoard: logged values are read with TensorBoard's own reader."""

import pytest

from llm.loggers.tensorboard import tensorboard_logger


def test_scalars_are_read_back(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = tensorboard_logger(str(tmp_path), "run")
    logger.log_metrics({"val/loss": 2.5}, step=7)
    logger.save()
    events = reader.EventAccumulator(logger.log_dir)
    events.Reload()
    (event,) = events.Scalars("val/loss")
    assert (event.step, event.value) == (7, 2.5)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("llm.loggers.tensorboard.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install 'llm-hydra\\[tensorboard\\]'"):
        tensorboard_logger(str(tmp_path), "run")
