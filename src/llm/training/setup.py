"""Building the data, task, callbacks and loggers of a run from its configuration."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from llm import distributed
from llm.adapters.base import Adapter
from llm.callbacks.checkpoints import Checkpoints
from llm.callbacks.interrupt import Interrupt
from llm.config.build import build, config_errors_at
from llm.config.deferred import Deferred
from llm.config.errors import ConfigError
from llm.config.resolvers import escaped
from llm.data.base import DataModule
from llm.files import write_text
from llm.hardware import Hardware
from llm.loggers.csv import CSVLogger
from llm.models.size import require_memory
from llm.runs import Run
from llm.tasks.base import Task
from llm.terminal.announce import say
from llm.training.activation_checkpointing import checkpoint_activations
from llm.training.resumption import Resumption
from llm.training.trainer import TrainerSettings
from llm.weights.base import Weights
from llm.weights.model_setup import initialize


def prepare_data(config: DictConfig, weights: Weights | None) -> DataModule:
    """Read and tokenize the data, and fill in the sizes that the model takes from them."""
    data = build(config.data, **({"tokenizer": weights.tokenizer()} if weights else {}))
    with distributed.first_on_each_machine():
        data.prepare_data()
    data.setup("fit")
    resolve_vocabulary(config, data.tokenizer.vocab_size)
    resolve_classes(config, data)
    return data


def resolve_vocabulary(config: DictConfig, size: int) -> None:
    """Write the tokenizer's vocabulary size into the model's node, if it is missing there.

    The vocabulary of pretrained weights grows if a template has new special tokens.

    Raises:
        ConfigError: the model's vocabulary size is set and too small.
    """
    missing = OmegaConf.is_missing(config.model, "vocab_size")
    if missing or (config.weights is not None and config.model.vocab_size < size):
        config.model.vocab_size = size
    if config.model.vocab_size < size:
        raise ConfigError(
            f"model.vocab_size: {config.model.vocab_size} is smaller than the tokenizer's {size}; "
            f"leave it out, or use {size} or more"
        )


def resolve_classes(config: DictConfig, data: DataModule) -> None:
    """Write the classes of the data into the configuration, if they have classes."""
    classes = getattr(data, "classes", None)
    if classes is None:
        return
    config.data.classes = list(classes)
    model = config.task.model
    if OmegaConf.is_missing(model, "num_classes"):
        model.num_classes = len(classes)


def make_task(
    deferred: Deferred[Any],
    *,
    settings: TrainerSettings,
    hardware: Hardware,
    weights: Weights | None,
    adapter: Adapter | None,
) -> Task:
    """Build the task with its model, initialized from the seed or from weights, and apply the hardware's settings."""
    config = deferred.tree
    L.seed_everything(config.seed, verbose=False)
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    if deferred.outline is not None:
        require_memory(deferred.outline, config.model.vocab_size)
    task: Task = deferred.build()
    with config_errors_at("adapter", None if adapter is None else type(adapter)):
        initialize(task.model, weights, adapter=adapter)
    task.is_pretrained = weights is not None
    task.is_adapted = adapter is not None and task.is_pretrained
    task.is_sharded = hardware.strategy is not None and hardware.strategy.is_sharded
    task.log_every = settings.log_every
    if hardware.activation_checkpointing:
        checkpoint_activations(task.model)
    if hardware.compile:
        task.compile_step()
    if hardware.strategy is not None:
        with config_errors_at("hardware.strategy"):
            hardware.strategy.fits(task, hardware.world)
    return task


def save_setup(run: Run, config: DictConfig, hardware: Hardware, data: DataModule) -> None:
    """Write the resolved configuration and the tokenizer, so that the directory is self-contained."""
    saved = OmegaConf.create(escaped(values_of(config)))
    for key in ("accelerator", "devices", "precision"):
        saved.hardware[key] = getattr(hardware, key)
    for key in ("path", "base"):  # absolute, to be found from any folder
        path = config.weights and config.weights.get(key)
        if path and Path(path).exists():
            saved.weights[key] = str(Path(path).resolve())
    write_text(run.config, OmegaConf.to_yaml(saved))
    data.tokenizer.save(run.tokenizer)


def values_of(config: DictConfig) -> dict[str, Any]:
    """Return all values of a run's configuration, without the name of the command."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return {name: value for name, value in plain.items() if name != "_target_"}


def choose_callbacks(
    named: Mapping[str, L.Callback | None], task: Task, data: DataModule
) -> list[L.Callback]:
    """Return the callbacks of a run in order, without those that are null or do not suit this task."""
    callbacks = []
    for name, callback in named.items():
        if callback is None:
            continue
        if getattr(callback, "suits", lambda task, data: True)(task, data):
            callbacks.append(callback)
        else:
            say(f"note      callbacks.{name} is left out: it does not apply to this task")
    if not any(isinstance(each, Checkpoints) for each in callbacks):
        say("note      callbacks.checkpoints is left out: no weights are saved")
    return sorted(callbacks, key=callback_order)


def callback_order(callback: L.Callback) -> int:
    """Return the sort key of a callback: others, then checkpoints, then the one that stops the run.

    If the process is killed after other callbacks have written their files and before the checkpoint is saved, the
    step is repeated, and the files are written again.
    """
    last = (Checkpoints, Interrupt)
    return next((order for order, kind in enumerate(last, 1) if isinstance(callback, kind)), 0)


def make_loggers(
    factories: Mapping[str, Callable[[str, str], Logger] | None],
    *,
    config: DictConfig,
    run: Run,
    resume: Resumption,
) -> list[Logger]:
    """Make the CSV logger and those of the configuration."""
    loggers: list[Logger] = [CSVLogger(run.metrics, resume.step if resume.path else -1)]
    plain = values_of(config)
    with config_errors_at("logger"):
        loggers += [make(str(run.path), run.path.name) for make in factories.values() if make]
        for logger in loggers:
            logger.log_hyperparams(plain)
    return loggers
