"""What the verbs that train nothing begin with."""

from unittest.mock import create_autospec

import pytest
import torch
from omegaconf import OmegaConf

from llm.apps.loading import load_writer, open_weights, stop_strings, use_hardware
from llm.config.errors import ConfigError
from llm.hardware import Hardware
from llm.models.classifier import Classifier
from llm.weights.weights import Weights


def test_nothing_was_learned_from_scratch():
    with pytest.raises(ConfigError, match="weights=scratch has learned nothing: use weights=run"):
        open_weights(OmegaConf.create({"weights": None}))


def test_a_classifier_does_not_write(build):
    hardware = Hardware(accelerator="cpu", precision=32)
    model = build()
    weights = create_autospec(Weights, instance=True, path="outputs/x")
    weights.model.return_value = model
    assert load_writer(weights, hardware) is model
    weights.model.return_value = Classifier(model, num_classes=1)
    with pytest.raises(ConfigError, match="outputs/x is a classifier or a reward model and writes"):
        load_writer(weights, hardware)


def test_hardware_is_resolved_and_its_threads_are_used():
    threads = torch.get_num_threads()
    node = {"_target_": "llm.hardware.Hardware", "accelerator": "cpu", "threads": threads + 1}
    try:
        hardware = use_hardware(OmegaConf.create({"hardware": {**node, "precision": 32}}))
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert hardware.accelerator == "cpu"
    with pytest.raises(ConfigError, match=r"hardware: hardware\.precision=fp16 needs a GPU"):
        use_hardware(OmegaConf.create({"hardware": {**node, "precision": "fp16"}}))


@pytest.mark.parametrize(("stop", "texts"), [("ab", ["ab"]), (["a", "b"], ["a", "b"]), ([], [])])
def test_a_stop_string_alone_is_one(stop, texts):
    assert stop_strings(OmegaConf.create({"stop": stop})) == texts
