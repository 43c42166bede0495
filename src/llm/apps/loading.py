"""What the verbs that train nothing have in common: a model out of some weights, on some hardware."""

from contextlib import AbstractContextManager, nullcontext

import torch
from omegaconf import DictConfig
from torch import nn

from llm.config.build import build, mistakes_at
from llm.config.errors import ConfigError
from llm.hardware import Hardware
from llm.models.classifier import Classifier
from llm.weights.weights import Weights


def open_weights(config: DictConfig) -> Weights:
    """The weights that a configuration names.

    Raises:
        ConfigError: there are none at that place, or it names none.
    """
    weights: Weights | None = build(config.weights)
    if weights is None:
        raise ConfigError("weights=scratch has learned nothing: use weights=run")
    return weights


def use_hardware(config: DictConfig) -> Hardware:
    """The hardware that a configuration names, resolved, with the number of threads that it says.

    Raises:
        ConfigError: this machine has no such hardware.
    """
    with mistakes_at("hardware"):
        hardware: Hardware = build(config.hardware).resolve()
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    return hardware


def load_writer(weights: Weights, hardware: Hardware) -> nn.Module:
    """The model of some weights, where it is to compute.

    Raises:
        ConfigError: the weights do not fit, or the model is none that writes.
    """
    model = weights.model()
    if isinstance(model, Classifier):
        raise ConfigError(
            f"weights.path: {weights.path} is a classifier or a reward model and writes nothing; "
            "see llm classify, or name the run that it began from"
        )
    return model.to(hardware.accelerator)


def stop_strings(config: DictConfig) -> list[str]:
    """The texts at which a configuration has writing end: one, or a list of them."""
    return [config.stop] if isinstance(config.stop, str) else list(config.stop)


def autocast(hardware: Hardware) -> AbstractContextManager[object]:
    """The precision that matrix products run in."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(str(hardware.precision))
    device = torch.device(hardware.accelerator).type
    return torch.autocast(device, dtype) if dtype else nullcontext()
