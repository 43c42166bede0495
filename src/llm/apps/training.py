"""How a run is trained, resumed and closed."""

import logging
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from llm.callbacks.interrupt import InterruptedRunError
from llm.callbacks.throughput import peak_memory
from llm.config.build import build, mistakes_at
from llm.config.check import check
from llm.config.errors import ConfigError
from llm.config.fingerprint import difference, fingerprint
from llm.hardware import Hardware
from llm.hardware import describe as describe_hardware
from llm.loggers.csv import CSVLogger
from llm.runs import Run
from llm.tasks.task import Task
from llm.trainer import Settings, checkpoint_activations, make_trainer
from llm.weights.checkpoint import load_checkpoint
from llm.weights.run import RunWeights

CONSOLE = Console(highlight=False)

# Lightning's advertisements and repetitions, and its use of a function that torch deprecates.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")


def train(config: DictConfig, directory: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Train what a composed configuration says, in its run directory.

    A run that is done is left alone; one that was interrupted goes on where it stopped. Everything that
    can be found wrong is found before the directory is touched.

    Args:
        config: the composed tree of `llm train`.
        directory: the run directory.
        overrides: the words of the command line, to repeat them in what is printed.

    Returns:
        The run.

    Raises:
        UserError: the configuration is wrong, or differs from the one the directory was trained under,
            another process trains there, or training diverged.
        SystemExit: after an interruption, with status 130.
    """
    weights: RunWeights | None = build(config.weights)
    if weights is not None:
        adopt(config, weights, overrides)
    check(config)
    with mistakes_at("hardware"):
        hardware: Hardware = build(config.hardware).resolve()
    run = Run(Path(directory))
    meaning = fingerprint(config)
    if not config.rerun:
        require_same(run, config, meaning)
    data = prepare(config, weights)
    settings: Settings = build(config.trainer)
    steps = settings.steps(data.batches_per_epoch, data.batch_size * data.context_length)
    if not config.rerun:
        require_same_text(run, data)
        require_more(run, steps)
        if run.status == "done" and run.record["steps"] >= steps:
            _say_done(run)
            return run
    task = make_task(config, settings, hardware, weights)

    with run.claimed():
        if config.rerun and (aside := run.set_aside()):
            CONSOLE.print(f"the run that stood here is kept as {aside}", soft_wrap=True)
        resume = run.last if run.last.is_file() else None
        run.start(meaning, config.seed, _command(overrides), data.fingerprint)
        with recorded(run, _command(overrides)) as progress:
            save(run, config, hardware, data)
            CONSOLE.print(
                summary(run, task, data, hardware, steps, settings, weights), soft_wrap=True
            )
            loggers = make_loggers(config, run, resume)
            callbacks = make_callbacks(config)
            trainer = make_trainer(settings, hardware, steps, task, callbacks, loggers, run.path)
            progress.trainer = trainer
            trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
        close(run, trainer, task)
    return run


def prepare(config: DictConfig, weights: RunWeights | None) -> Any:
    """The data module, its text tokenized, and with it the vocabulary that the model needs."""
    data = build(config.data, **({"tokenizer": weights.tokenizer()} if weights else {}))
    data.prepare_data()
    data.setup("fit")
    resolve_vocabulary(config, data.tokenizer.vocab_size)
    return data


def make_task(
    config: DictConfig, settings: Settings, hardware: Hardware, weights: RunWeights | None
) -> Task:
    """The task with its model, drawn from the seed or read from a run, and what hardware asks of it."""
    L.seed_everything(config.seed, verbose=False)
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    task: Task = build(config.task)
    if weights is not None:
        task.model.load_state_dict(weights.state_dict())
    task.log_every = settings.log_every
    if hardware.activation_checkpointing:
        checkpoint_activations(task.model)
    if hardware.compile:
        task.compile_step()
    return task


def adopt(config: DictConfig, weights: RunWeights, overrides: Sequence[str]) -> None:
    """Take the architecture of the base run into `config`.

    Raises:
        ConfigError: an override asks for another model, size or tokenizer than the base run's.
    """
    groups = ("model", "size", "tokenizer")
    asked = [
        word
        for word in overrides
        if word.lstrip("+~").split("=")[0].split(".")[0].split("/")[0] in groups
    ]
    if asked:
        raise ConfigError(
            f"{' '.join(asked)}: weights=run takes model, size and tokenizer from {weights.path}; "
            "leave these overrides out, or train from weights=scratch"
        )
    for group in groups:
        OmegaConf.update(config, group, weights.config[group], merge=False, force_add=True)


def require_same(run: Run, config: DictConfig, new: str) -> None:
    """Refuse to go on in a directory that another configuration was trained in.

    Raises:
        ConfigError: with one line for each value that differs.
    """
    if run.status == "new" or run.record.get("fingerprint") == new:
        return
    lines = difference(OmegaConf.load(run.config), config)
    raise ConfigError(
        f"{run.path} was trained under another configuration; choose another name=, or rerun=true to replace it",
        *lines,
    )


def require_same_text(run: Run, data: Any) -> None:
    """Refuse to go on with a text, a tokenizer or a Python that is not the one the run began with.

    Raises:
        ConfigError: they are not the same.
    """
    if run.record.get("data", data.fingerprint) != data.fingerprint:
        raise ConfigError(
            f"{_short(run.path)} was begun on another text: the files, the Python whose documentation they "
            "are, or the tokenizer have changed since; choose another name=, or rerun=true to replace it"
        )


def require_more(run: Run, steps: int) -> None:
    """Refuse to end an interrupted run before the step it has reached.

    Raises:
        ConfigError: the budget is spent already.
    """
    if run.status == "interrupted" and run.record["steps"] >= steps:
        raise ConfigError(
            f"{_short(run.path)} has taken {run.record['steps']:,} steps already: give a trainer.max_steps "
            "above that, or rerun=true to begin again"
        )


def resolve_vocabulary(config: DictConfig, size: int) -> None:
    """Write the tokenizer's vocabulary size into the model's node, where it is left open.

    Raises:
        ConfigError: the model's is given and too small.
    """
    if OmegaConf.is_missing(config.model, "vocab_size"):
        config.model.vocab_size = size
    if config.model.vocab_size < size:
        raise ConfigError(
            f"model.vocab_size: {config.model.vocab_size} is smaller than the tokenizer's {size}; "
            f"leave it out, or give {size} or more"
        )


def save(run: Run, config: DictConfig, hardware: Hardware, data: Any) -> None:
    """Write what makes the directory self-contained: the configuration, resolved, and the tokenizer."""
    saved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    for key in ("accelerator", "devices", "precision"):
        saved.hardware[key] = getattr(hardware, key)
    OmegaConf.save(saved, run.config)
    data.tokenizer.save(run.tokenizer)


def summary(
    run: Run,
    task: Task,
    data: Any,
    hardware: Hardware,
    steps: int,
    settings: Settings,
    weights: RunWeights | None,
) -> str:
    """What is about to happen, in a few lines, with the numbers that were derived."""
    parameters = sum(p.numel() for p in task.model.parameters())
    tokens = data.batch_size * data.context_length * settings.accumulate
    epochs = steps * settings.accumulate / data.batches_per_epoch
    lines = [
        f"run       {_short(run.path)}" + (" (goes on)" if run.last.is_file() else ""),
        f"data      {data.describe()}",
        f"model     {type(task.model).__name__}, {parameters:,} parameters",
        f"budget    {steps:,} steps × {tokens:,} tokens = {steps * tokens:,} tokens, {epochs:.2f} epochs",
        f"hardware  {describe_hardware(hardware)}",
    ]
    if weights is not None:
        lines.append(f"weights   {weights.path}: model, size and tokenizer are that run's")
    if "stopped_at" in run.record and run.last.is_file():
        lines.append(
            "note      this run was done: its learning rate follows the longer schedule now"
        )
    return "\n".join(lines)


def make_callbacks(config: DictConfig) -> list[L.Callback]:
    """The callbacks of a configuration; those set to null are left out."""
    return [callback for callback in build(config.callbacks).values() if callback is not None]


def make_loggers(config: DictConfig, run: Run, resume: Path | None) -> list[Logger]:
    """The CSV logger, which is always on, and those of the configuration."""
    resume_step = load_checkpoint(resume)["global_step"] if resume else -1
    loggers: list[Logger] = [CSVLogger(run.metrics, resume_step)]
    plain = OmegaConf.to_container(config, resolve=True)
    for make in build(config.logger).values():
        if make is not None:
            with mistakes_at("logger"):
                logger = make(str(run.path), run.path.name)
            logger.log_hyperparams(plain)
            loggers.append(logger)
    return loggers


@dataclass
class Progress:
    """How far a run is, for the record of its end."""

    trainer: L.Trainer | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return self.trainer.global_step if self.trainer is not None else 0


@contextmanager
def recorded(run: Run, command: str) -> Iterator[Progress]:
    """Record how a run ended if it did not end well, and tell an interrupted one how to go on."""
    progress = Progress()
    try:
        yield progress
    except InterruptedRunError as error:
        run.finish("interrupted", steps=progress.steps)
        Console(stderr=True).print(
            f"stopped by {error} after step {progress.steps}; it is saved.\nTo go on: {command}",
            soft_wrap=True,
        )
        raise SystemExit(130) from None
    except BaseException as error:
        run.finish("failed", steps=progress.steps, error=f"{type(error).__name__}: {error}")
        raise
    finally:
        finish_wandb()


def finish_wandb() -> None:
    """End a W&B run, if one is open: the next job of this process would land in it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


def close(run: Run, trainer: L.Trainer, task: Task) -> None:
    """Record the figures of a whole run and say what to do with it."""
    run.finish(
        "done",
        steps=trainer.max_steps,
        stopped_at=trainer.global_step,
        parameters=sum(p.numel() for p in task.model.parameters()),
        peak_memory=peak_memory(task.device),
        metrics=task.figures,
    )
    CONSOLE.print(
        f"\ndone: {_short(run.path)}\n"
        f"  picture   {_short(run.picture)}\n"
        f"  samples   {_short(run.samples)}\n"
        f"  write     llm generate weights.path={shlex.quote(str(_short(run.path)))}",
        soft_wrap=True,
    )


def _say_done(run: Run) -> None:
    CONSOLE.print(
        f"{_short(run.path)} is done already ({run.record['steps']:,} steps). Train it longer with a "
        "larger trainer.max_steps, again from the start with rerun=true, or write with it:\n"
        f"  llm generate weights.path={shlex.quote(str(_short(run.path)))}",
        soft_wrap=True,
    )


def _short(path: Path) -> Path:
    """A path relative to here where it lies below here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def _command(overrides: Sequence[str]) -> str:
    """The command that goes on with this run: a rerun, once begun, is not begun again."""
    return shlex.join(["llm", "train", *(w for w in overrides if not w.startswith("rerun="))])
