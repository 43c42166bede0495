"""What a run is made of: its data, task, callbacks and loggers, built from a composed configuration."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from llm import distributed
from llm.callbacks.checkpoints import Checkpoints
from llm.callbacks.interrupt import Interrupt
from llm.config.build import build, config_errors_at
from llm.config.check import check
from llm.config.errors import ConfigError
from llm.config.overrides import key_of
from llm.config.resolvers import escaped
from llm.data.base import DataModule
from llm.files import write_text
from llm.hardware import Hardware
from llm.loggers.csv import CSVLogger
from llm.models.size import require_memory
from llm.runs import Run
from llm.tasks.base import Task
from llm.terminal.announce import say
from llm.training.resumption import (
    Resumption,
)
from llm.training.trainer import TrainerSettings, checkpoint_activations
from llm.weights.base import Weights
from llm.weights.model_setup import initialize


def adopted(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A configuration with the model, size and tokenizer of the weights that it begins from.

    Raises:
        ConfigError: there are no weights, an override asks for others than theirs, or the task cannot
            work with their model.
    """
    weights = build(config.weights)
    if weights is None:
        return config
    config = deepcopy(config)
    adopt(config, weights, overrides)
    check(config)
    return config


def adopt(config: DictConfig, weights: Weights, overrides: Sequence[str]) -> None:
    """Take the architecture of the weights into `config`; only its dropout may be chosen anew.

    Raises:
        ConfigError: an override asks for another model, size or tokenizer than that of the weights.
    """
    groups = ("model", "size", "tokenizer")
    keys = {word: key_of(word) for word in overrides}
    given = [word for word, key in keys.items() if key.split(".")[0] in groups]
    dropouts = [word for word in given if keys[word].endswith(".dropout")]
    refused = [word for word in given if word not in dropouts]
    if refused:
        raise ConfigError(
            f"{' '.join(refused)}: the model, its size and its tokenizer are those of {weights.path}; leave these "
            f"overrides out, or train from weights=scratch{_shorter(config, refused)}"
        )
    chosen = {keys[word]: OmegaConf.select(config, keys[word]) for word in dropouts}
    theirs = weights.config
    for group in groups:
        if group in theirs:
            OmegaConf.update(config, group, theirs[group], merge=False, force_add=True)
    for key, value in chosen.items():
        OmegaConf.update(config, key, value)
    require_context(config, weights)
    template = OmegaConf.select(theirs, "data.template")
    is_chosen = any(key.startswith("data.template") for key in keys.values())
    if template is not None and "template" in config.data and not is_chosen:
        config.data.template = template  # what a model learned to answer in, it is asked in


def require_context(config: DictConfig, weights: Weights) -> None:
    """Refuse examples that are longer than the context of the weights.

    Raises:
        ConfigError: they are.
    """
    length, most = (
        OmegaConf.select(config, f"{part}.context_length") for part in ("data", "model")
    )
    if isinstance(length, int) and isinstance(most, int) and length > most:
        raise ConfigError(
            f"data.context_length: {length} is more than the {most} tokens of {weights.path}; give {most} or less"
        )


def _shorter(config: DictConfig, refused: Sequence[str]) -> str:
    """The override that does what one of `size.context_length` was to do."""
    lengths = [word for word in refused if key_of(word) == "size.context_length"]
    if not lengths:
        return ""
    part = "weights" if "context_length" in config.weights else "data"
    return f"; for shorter examples: {part}.context_length={lengths[0].partition('=')[2]}"


def prepare_data(config: DictConfig, weights: Weights | None) -> DataModule:
    """The data module, read and tokenized, and with it the numbers that the model takes from it."""
    data = build(config.data, **({"tokenizer": weights.tokenizer()} if weights else {}))
    with distributed.first_on_each_machine():
        data.prepare_data()
    data.setup("fit")
    resolve_vocabulary(config, data.tokenizer.vocab_size)
    resolve_classes(config, data)
    return data


def resolve_vocabulary(config: DictConfig, size: int) -> None:
    """Write the tokenizer's vocabulary size into the model's node, where it is left open.

    The vocabulary of pretrained weights grows where a template's special tokens are more than it has room for.

    Raises:
        ConfigError: the model's is given and too small.
    """
    missing = OmegaConf.is_missing(config.model, "vocab_size")
    if missing or (config.weights is not None and config.model.vocab_size < size):
        config.model.vocab_size = size
    if config.model.vocab_size < size:
        raise ConfigError(
            f"model.vocab_size: {config.model.vocab_size} is smaller than the tokenizer's {size}; "
            f"leave it out, or give {size} or more"
        )


def resolve_classes(config: DictConfig, data: DataModule) -> None:
    """Write the classes that were found into the configuration, where data have classes."""
    classes = getattr(data, "classes", None)
    if classes is None:
        return
    config.data.classes = list(classes)
    model = config.task.model
    if OmegaConf.is_missing(model, "num_classes"):
        model.num_classes = len(classes)


def make_task(
    config: DictConfig, settings: TrainerSettings, hardware: Hardware, weights: Weights | None
) -> Task:
    """The task with its model, drawn from the seed or read from a run, and what hardware asks of it."""
    L.seed_everything(config.seed, verbose=False)
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    if config.task.get("model") is not None:
        require_memory(config.task.model)
    task: Task = build(config.task)
    adapter = build(config.adapter)
    with config_errors_at("adapter"):
        initialize(task.model, weights, adapter)
    task.is_adapted = adapter is not None and weights is not None
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
    """Write what makes the directory self-contained: the configuration, resolved, and the tokenizer."""
    saved = OmegaConf.create(escaped(OmegaConf.to_container(config, resolve=True)))
    for key in ("accelerator", "devices", "precision"):
        saved.hardware[key] = getattr(hardware, key)
    for key in ("path", "base"):  # found again from any folder
        place = config.weights and config.weights.get(key)
        if place and Path(place).exists():
            saved.weights[key] = str(Path(place).resolve())
    write_text(run.config, OmegaConf.to_yaml(saved))
    data.tokenizer.save(run.tokenizer)


def published(weights: Weights | None) -> dict[str, Any]:
    """What the published folder says that a run gets its weights from, for the run's record."""
    settings = weights.published if weights is not None else None
    return {} if settings is None else {"published": settings.plain()}


def make_callbacks(config: DictConfig, task: Task, data: DataModule) -> list[L.Callback]:
    """The callbacks of a configuration; those set to null are left out, and those this task has no use for."""
    callbacks = []
    for name, callback in build(config.callbacks).items():
        if callback is None:
            continue
        if getattr(callback, "suits", lambda task, data: True)(task, data):
            callbacks.append(callback)
        else:
            say(f"note      callbacks.{name} is left out: nothing for it in this task")
    if not any(isinstance(each, Checkpoints) for each in callbacks):
        say("note      callbacks.checkpoints is left out: nothing that is learned is saved")
    return sorted(callbacks, key=place_of)


def place_of(callback: L.Callback) -> int:
    """The place of a callback among the others: what they keep of a step is kept before its checkpoint is.

    A process that is killed between the two does the step again, and with it what was kept of it. Who stops the
    run comes last.
    """
    last = (Checkpoints, Interrupt)
    return next((place for place, kind in enumerate(last, 1) if isinstance(callback, kind)), 0)


def make_loggers(config: DictConfig, run: Run, resume: Resumption) -> list[Logger]:
    """The CSV logger, which is always on, and those of the configuration."""
    loggers: list[Logger] = [CSVLogger(run.metrics, resume.step if resume.path else -1)]
    plain: Any = OmegaConf.to_container(config, resolve=True)
    for make in build(config.logger).values():
        if make is not None:
            with config_errors_at("logger"):
                loggers.append(make(str(run.path), run.path.name))
    for logger in loggers:
        with config_errors_at("logger"):
            logger.log_hyperparams(plain)
    return loggers
