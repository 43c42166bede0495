"""What keeps a run from beginning, or from going on: each refusal is one line with the way out."""

from copy import deepcopy

import psutil
import torch
from omegaconf import DictConfig, OmegaConf

from llm.config.build import build, config_errors_at
from llm.config.check import FILLED_IN
from llm.config.errors import ConfigError
from llm.config.fingerprint import is_changeable
from llm.config.requirements import PROVISIONAL
from llm.data.base import DataModule
from llm.hardware import Hardware
from llm.runs import Run, display_path
from llm.tasks.base import Task
from llm.terminal import shell
from llm.training.resumption import ALLOW_CHANGES, changes_since, require_last
from llm.units import format_bytes
from llm.weights.model_setup import initialize


def require_same_configuration(run: Run, config: DictConfig, new: str) -> None:
    """Refuse to go on in a directory that another configuration was trained in.

    Raises:
        ConfigError: with one line for each value that differs.
    """
    if run.record.get("fingerprint") == new:
        return
    require_last(run)
    if run.has_last:
        require_changeable(run, config)
    elif config.resume == ALLOW_CHANGES:
        raise ConfigError(
            f"resume={ALLOW_CHANGES}: there is no run to go on with in {display_path(run.path)}; name one with name="
        )


def require_changeable(run: Run, config: DictConfig) -> None:
    """Refuse values that a run cannot go on with, or that the user has not allowed to change.

    Raises:
        ConfigError: with one line for each.
    """
    if "fingerprint" not in run.record or not run.config.is_file():
        raise ConfigError(
            f"{display_path(run.path)}: has checkpoints, but not the run.json and config.yaml of the run that wrote "
            "them; put those back, choose another name=, or begin again with rerun=true"
        )
    found = changes_since(run, config)
    fixed = {key: change for key, change in found.items() if not is_changeable(key)}
    if config.resume == ALLOW_CHANGES and not fixed:
        return
    path = shell.quoted_word(f"weights.path={display_path(run.path)}")
    goes_on = "" if fixed else f"go on from its last checkpoint with resume={ALLOW_CHANGES}, "
    raise ConfigError(
        f"{display_path(run.path)} was trained under another configuration; {goes_on}choose another name=, begin with "
        f"its weights with weights=run {path} name=NEW, or replace it with rerun=true",
        *(f"{key}: {change}" for key, change in found.items()),
    )


def require_same_text(run: Run, data: DataModule) -> None:
    """Refuse to go on with a text, a tokenizer or a Python that is not the one the run began with.

    Raises:
        ConfigError: they are not the same.
    """
    if run.record.get("data", data.fingerprint) != data.fingerprint:
        raise ConfigError(
            f"{display_path(run.path)} was begun on another text: the files, the Python whose documentation they "
            "are, or the tokenizer have changed since; choose another name=, or rerun=true to replace it"
        )


def require_same_base(run: Run, base: str | None) -> None:
    """Refuse to go on from a checkpoint over other weights than the run began from.

    An adapter's checkpoint holds none of them, and a reference is made of them anew.

    Raises:
        ConfigError: the weights have changed.
    """
    if run.has_last and run.record.get("base", base) != base:
        raise ConfigError(
            f"{display_path(run.path)} began from other weights than lie there now; choose another name=, or "
            "rerun=true to begin again"
        )


def require_memory_for_batch(data: DataModule, config: DictConfig) -> None:
    """Refuse a batch whose embeddings alone, in half precision, are more than this machine's memory.

    Raises:
        ConfigError: they are.
    """
    dim = OmegaConf.select(config, "model.dim") or 1
    needed = data.tokens_per_batch * dim * 2
    there = psutil.virtual_memory().total
    if needed > there * config.hardware.num_nodes:
        raise ConfigError(
            f"data.batch_size: {data.batch_size:,} rows take {format_bytes(needed)} or more, and this machine has "
            f"{format_bytes(there)}; give fewer, and trainer.accumulate for as many in an optimizer step"
        )


def require_more(run: Run, steps: int) -> None:
    """Refuse to end an interrupted run before the step it has reached.

    Raises:
        ConfigError: the budget is spent already.
    """
    taken = run.record.get("steps", 0)
    owes_its_test = taken == steps == run.record.get("max_steps", steps)
    if run.status == "interrupted" and taken >= steps and not owes_its_test:
        raise ConfigError(
            f"{display_path(run.path)} has taken {taken:,} steps already; give a trainer.max_steps "
            "above that, or rerun=true to begin again"
        )


def require_even_shares(config: DictConfig, hardware: Hardware) -> None:
    """Refuse a batch that the devices cannot share evenly.

    Raises:
        ConfigError: they cannot.
    """
    if hardware.strategy is None:
        return
    batch, shares = config.data.batch_size, hardware.strategy.pieces(hardware.world)
    if batch % shares:
        nearest = max(1, round(batch / shares)) * shares
        raise ConfigError(
            f"data.batch_size: {batch} rows cannot be divided into {shares} equal parts, as the devices do; give a "
            f"multiple of {shares}, such as {nearest}"
        )


def require_division(config: DictConfig, hardware: Hardware) -> None:
    """Refuse what several devices cannot divide, or not on this hardware: a batch, a model, a task.

    Args:
        config: of a run, adopted from weights where it begins from some; its data need not have been read.
        hardware: with devices that were counted.

    Raises:
        ConfigError: they cannot.
    """
    strategy = hardware.strategy
    if strategy is None:
        return
    with config_errors_at("hardware"):
        strategy.check(hardware)
    require_even_shares(config, hardware)
    task = outline(config)
    with config_errors_at("hardware.strategy"):
        strategy.fits(task, hardware.world)


def outline(config: DictConfig) -> Task:
    """The task of a configuration with a model that has shapes and no weights.

    Raises:
        ConfigError: a part of it cannot be built.
    """
    config = deepcopy(config)
    for key in OmegaConf.missing_keys(config) & {*FILLED_IN}:  # known once data are read
        OmegaConf.update(config, key, PROVISIONAL)
    with torch.device("meta"), torch.random.fork_rng(devices=[]), config_errors_at("adapter"):
        task: Task = build(config.task)
        initialize(task.model, None, adapter=build(config.adapter))
    return task
