"""Checks before a run begins or resumes. Each raises a ConfigError that says what to do."""

import psutil
import torch
from omegaconf import DictConfig, OmegaConf

from llm.config.build import build, config_errors_at
from llm.config.check import build_on_meta
from llm.config.errors import ConfigError
from llm.config.fingerprint import is_changeable
from llm.data.base import DataModule
from llm.hardware import Hardware
from llm.runs import Run, display_path
from llm.tasks.base import Task
from llm.terminal import shell
from llm.training.resumption import ALLOW_CHANGES, changes_since, require_last
from llm.units import format_bytes
from llm.weights.model_setup import initialize


def require_same_configuration(run: Run, config: DictConfig, new: str) -> None:
    """Refuse to resume in the directory of a run with another configuration."""
    if run.record.get("fingerprint") == new:
        return
    require_last(run)
    if run.has_last:
        require_changeable(run, config)
    elif config.resume == ALLOW_CHANGES:
        raise ConfigError(
            f"resume={ALLOW_CHANGES}: there is no run to resume in {display_path(run.path)}; name one with name="
        )


def require_changeable(run: Run, config: DictConfig) -> None:
    """Refuse changes that a resumed run cannot have, or that the user has not allowed."""
    if "fingerprint" not in run.record or not run.config.is_file():
        raise ConfigError(
            f"{display_path(run.path)}: has checkpoints, but not the run.json and config.yaml of the run that wrote "
            "them; restore those, choose another name=, or train again with rerun=true"
        )
    found = changes_since(run, config)
    fixed = {key: change for key, change in found.items() if not is_changeable(key)}
    if "order" in config.data and "data.batch_size" in found:
        # A contiguous text has a stream, with a state in the checkpoint, for each row.
        fixed["data.batch_size"] = found["data.batch_size"]
    if config.resume == ALLOW_CHANGES and not fixed:
        return
    path = shell.quoted_word(f"weights.path={display_path(run.path)}")
    resume = "" if fixed else f"resume from its last checkpoint with resume={ALLOW_CHANGES}, "
    raise ConfigError(
        f"{display_path(run.path)} was trained with another configuration; {resume}choose another name=, start from "
        f"its weights with weights=run {path} name=NEW, or replace it with rerun=true",
        *(f"{key}: {change}" for key, change in found.items()),
    )


def require_same_text(run: Run, data: DataModule) -> None:
    """Refuse to resume with another text or tokenizer."""
    if run.record.get("data", data.fingerprint) != data.fingerprint:
        raise ConfigError(
            f"{display_path(run.path)} was trained on another text: the files, the Python version (for its "
            "documentation) or the tokenizer have changed; choose another name=, or replace it with rerun=true"
        )


def require_same_base(run: Run, base: str | None) -> None:
    """Refuse to resume if the weights that the run began from have changed.

    An adapter's checkpoint does not contain them, and a reference model is made from them again.
    """
    if run.has_last and run.record.get("base", base) != base:
        raise ConfigError(
            f"{display_path(run.path)} began from weights that have changed since; choose another name=, or train "
            "again with rerun=true"
        )


def require_memory_for_batch(data: DataModule, config: DictConfig) -> None:
    """Refuse a batch whose embeddings alone, in 16 bits, exceed this machine's memory."""
    dim = OmegaConf.select(config, "model.dim") or 1
    needed = data.tokens_per_batch * dim * 2
    memory = psutil.virtual_memory().total
    if needed > memory * config.hardware.num_nodes:
        raise ConfigError(
            f"data.batch_size: {data.batch_size:,} rows take {format_bytes(needed)} or more, and this machine has "
            f"{format_bytes(memory)}; use fewer, and trainer.accumulate for the same number per optimizer step"
        )


def require_unused_budget(run: Run, steps: int) -> None:
    """Refuse a budget that an interrupted run has used up already."""
    taken = run.record.get("steps", 0)
    # The run may have stopped after its last step, before the test.
    lacks_test = taken == steps == run.record.get("max_steps", steps)
    if run.status == "interrupted" and taken >= steps and not lacks_test:
        raise ConfigError(
            f"{display_path(run.path)} has taken {taken:,} steps already; use a trainer.max_steps "
            "above that, or train again with rerun=true"
        )


def require_even_shares(config: DictConfig, hardware: Hardware) -> None:
    """Refuse a batch that cannot be divided evenly among the devices."""
    if hardware.strategy is None:
        return
    batch, shares = config.data.batch_size, hardware.strategy.batch_divisor(hardware.world)
    if batch % shares:
        nearest = max(1, round(batch / shares)) * shares
        raise ConfigError(
            f"data.batch_size: {batch} rows cannot be divided into {shares} equal parts for the devices; use a "
            f"multiple of {shares}, such as {nearest}"
        )


def require_division(config: DictConfig, hardware: Hardware, task: Task | None = None) -> None:
    """Refuse a batch, a model or a task that several devices cannot divide.

    Args:
        config: the configuration of a run, with the architecture of its weights; its data need not have been read.
        hardware: the hardware with its devices counted.
        task: its `outline`, if that exists already.
    """
    strategy = hardware.strategy
    if strategy is None:
        return
    with config_errors_at("hardware", Hardware):
        strategy.check(hardware)
    require_even_shares(config, hardware)
    task = task or outline(config)
    with config_errors_at("hardware.strategy"):
        strategy.fits(task, hardware.world)


def outline(config: DictConfig) -> Task:
    """Return the task of a configuration with its model on `meta`: shapes without weights.

    Raises:
        ConfigError: a node cannot be built.
    """
    task: Task = build_on_meta(config, "task")
    adapter = build(config.adapter)
    target = None if adapter is None else type(adapter)
    with torch.device("meta"), config_errors_at("adapter", target):
        initialize(task.model, None, adapter=adapter)
    return task
