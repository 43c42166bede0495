"""How a run is trained, resumed and closed."""

import logging
import os
import signal
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from llm import distributed, shell, signals
from llm.apps.advising import few_steps
from llm.apps.explaining import explained
from llm.apps.refusing import (
    require_even_shares,
    require_more,
    require_room,
    require_same,
    require_same_base,
    require_same_text,
)
from llm.apps.resuming import (
    Resumption,
    find_resumption,
    in_the_same_precision,
    require_last,
    ways_out,
)
from llm.callbacks.checkpoints import Checkpoints
from llm.callbacks.interrupt import Interrupt, InterruptedRunError
from llm.callbacks.throughput import CountsFlops, peak_memory
from llm.config.budget import give_one_budget
from llm.config.build import build, mistakes_at
from llm.config.check import check
from llm.config.errors import ConfigError, UserError
from llm.config.fingerprint import WATCHED, fingerprint
from llm.config.resolvers import escaped
from llm.config.texts import quoted
from llm.config.whitelist import locate
from llm.config.words import key_of
from llm.console import new_console
from llm.data.module import DataModule
from llm.files import write_text
from llm.hardware import Hardware
from llm.hardware import describe as describe_hardware
from llm.loggers.csv import CSVLogger
from llm.loggers.wandb import WandbLogger
from llm.models.size import require_memory
from llm.optim.muon import Muon
from llm.runs import FollowedRun, Run, identity, short
from llm.tasks.divergence import DivergedError
from llm.tasks.task import Task
from llm.trainer import Settings, checkpoint_activations, make_trainer
from llm.weights.checkpoint import read_usable
from llm.weights.digests import DamagedCheckpointError
from llm.weights.initial import initialize
from llm.weights.weights import Weights

CONSOLE = new_console()

# Lightning's advertisements and repetitions, and its use of a function that torch deprecates.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")


def train(
    config: DictConfig,
    directory: str | Path,
    overrides: Sequence[str] = (),
    choices: Mapping[str, str | None] | None = None,
    options: Sequence[str] = (),
) -> Run:
    """Train what a composed configuration says, in its run directory.

    A run that is done is left alone; one that was interrupted goes on where it stopped. Everything that
    can be found wrong is found before the directory is touched.

    Args:
        config: the composed tree of `llm train`.
        directory: the run directory.
        overrides: the words of the command line, to repeat them in what is printed.
        choices: the option chosen of each group, for those who compare runs.
        options: flags of the command line without which its words mean something else, such as a folder of
            configs.

    Returns:
        The run.

    Raises:
        UserError: the configuration is wrong, or differs from the one the directory was trained under,
            another process trains there, or training diverged.
        SystemExit: after an interruption, with status 143 by SIGTERM, else 130.
    """
    give_one_budget(config, overrides)
    request = fingerprint(config, WATCHED)
    again = _again(overrides, options)
    weights: Weights | None = build(config.weights)
    if weights is not None:
        adopt(config, weights, overrides)
    check(config)
    with mistakes_at("hardware"):
        hardware: Hardware = build(config.hardware).resolve()
    require_even_shares(config, hardware)
    run = (Run if distributed.is_first() else FollowedRun)(Path(directory))
    # All decide by one record: another process may end the run meanwhile.
    run.record = distributed.broadcast(run.record)
    meaning = fingerprint(config)
    if not config.rerun:
        require_same(run, config, meaning)
    hardware = in_the_same_precision(hardware, run, config)
    data = prepare(config, weights)
    require_room(data, config)
    settings: Settings = build(config.trainer)
    steps = settings.steps(data.batches_per_epoch, data.tokens_per_batch)
    data.bound_validation(settings.validation_bytes(steps, data.tokens_per_batch))
    base = weights.fingerprint if weights is not None else None
    if not config.rerun:
        require_same_text(run, data)
        require_same_base(run, base)
        require_more(run, steps)
        if _is_done(run, steps):
            _say_done(run, config)
            return run
        require_last(run)
    task = make_task(config, settings, hardware, weights)
    with mistakes_at("task"):
        task.check(data)
    with mistakes_at("optimizer"):  # which may not suit what the adapter trains
        task.make_optimizer(task.parameter_groups(task.model))

    distributed.barrier()  # no rank reads what the first one is about to write
    with run.claimed():
        run.record = distributed.broadcast(run.record)
        if not config.rerun and _is_done(run, steps):  # by another process, meanwhile
            _say_done(run, config)
            return run
        if config.rerun and (aside := run.set_aside()):
            say(f"the run that stood here is kept as {aside}")
        resume, parts = distributed.broadcast(
            find_resumption(run, config, meaning) if distributed.is_first() else None
        )
        command = shell.line(shell.program(), *again, modules=config.trust)
        rescue = shell.line(shell.program(), *_rescue(again, run), modules=config.trust)
        with recorded(run, resume, command, rescue) as progress, explained():
            run.start(
                name=run.path.name,
                fingerprint=meaning,
                base=base,
                **published(weights),
                request=request,
                command=shell.line("llm", *again, modules=config.trust),
                sweep=os.environ.get("LLM_SWEEP"),
                **(identity(config, overrides, choices or {}) | parts),
                **size(task, data, settings, steps, hardware),
            )
            if distributed.is_first():
                save(run, config, hardware, data)
                progress.loggers = make_loggers(config, run, resume)
            say(
                "\n".join(
                    [*resume.notes, summary(run, task, data, hardware, steps, settings, weights)]
                )
            )
            say_undivided(config, hardware)
            loggers = progress.loggers
            callbacks = make_callbacks(config, task, data)
            trainer = make_trainer(
                *(settings, hardware, steps, task, callbacks, loggers, run.path),
                before=weights is not None and resume.path is None,
            )
            progress.trainer = trainer
            trainer.fit(task, datamodule=data, ckpt_path=resume.path, weights_only=True)
            run.update(trained=True)
            test(run, trainer, task, data)
            progress.end_loggers(0)
            close(run, trainer, task, config, progress)
    return run


def published(weights: Weights | None) -> dict[str, Any]:
    """What the published folder says that a run gets its weights from, for the run's record."""
    settings = weights.published if weights is not None else None
    return {} if settings is None else {"published": settings.plain()}


def size(
    task: Task, data: DataModule, settings: Settings, steps: int, hardware: Hardware
) -> dict[str, Any]:
    """How much a run learns from, and how large a model, for its record."""
    row = max(1, round(data.tokens_per_row))
    flops = task.model.flops_per_token(row) if isinstance(task.model, CountsFlops) else None
    return {
        "data": data.fingerprint,
        "corpus": getattr(data, "corpus", None),
        "vocabulary": getattr(data, "vocabulary", None),
        "parameters": count(task.model),
        "trained_parameters": count(task.model, trained=True),
        "flops_per_token": flops,
        "tokens_per_step": round(data.tokens_per_batch * settings.accumulate),
        "devices": hardware.world,
        "max_steps": steps,
    }


def prepare(config: DictConfig, weights: Weights | None) -> DataModule:
    """The data module, read and tokenized, and with it the numbers that the model takes from it."""
    data = build(config.data, **({"tokenizer": weights.tokenizer()} if weights else {}))
    with distributed.first_on_each_machine():
        data.prepare_data()
    data.setup("fit")
    resolve_vocabulary(config, data.tokenizer.vocab_size)
    resolve_classes(config, data)
    return data


def make_task(
    config: DictConfig, settings: Settings, hardware: Hardware, weights: Weights | None
) -> Task:
    """The task with its model, drawn from the seed or read from a run, and what hardware asks of it."""
    L.seed_everything(config.seed, verbose=False)
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    if config.task.get("model") is not None:
        require_memory(config.task.model)
    task: Task = build(config.task)
    adapter = build(config.adapter)
    with mistakes_at("adapter"):
        initialize(task.model, weights, adapter)
    task.is_adapted = adapter is not None and weights is not None
    task.is_sharded = hardware.strategy is not None and hardware.strategy.is_sharded
    task.log_every = settings.log_every
    if hardware.activation_checkpointing:
        checkpoint_activations(task.model)
    if hardware.compile:
        task.compile_step()
    if hardware.strategy is not None:
        with mistakes_at("hardware.strategy"):
            hardware.strategy.fits(task, hardware.world)
    return task


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
    asked = [word for word, key in keys.items() if key.split(".")[0] in groups]
    dropouts = [word for word in asked if keys[word].endswith(".dropout")]
    refused = [word for word in asked if word not in dropouts]
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
    asked, most = (OmegaConf.select(config, f"{part}.context_length") for part in ("data", "model"))
    if isinstance(asked, int) and isinstance(most, int) and asked > most:
        raise ConfigError(
            f"data.context_length: {asked} is more than the {most} tokens of {weights.path}; give {most} or less"
        )


def _shorter(config: DictConfig, refused: Sequence[str]) -> str:
    """The override that does what one of `size.context_length` was to do."""
    lengths = [word for word in refused if key_of(word) == "size.context_length"]
    if not lengths:
        return ""
    part = "weights" if "context_length" in config.weights else "data"
    return f"; for shorter examples: {part}.context_length={lengths[0].partition('=')[2]}"


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


def save(run: Run, config: DictConfig, hardware: Hardware, data: DataModule) -> None:
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


def summary(
    run: Run,
    task: Task,
    data: DataModule,
    hardware: Hardware,
    steps: int,
    settings: Settings,
    weights: Weights | None,
) -> str:
    """What is about to happen, in a few lines, with the numbers that were derived."""
    tokens = round(data.tokens_per_batch * settings.accumulate)
    epochs = steps * settings.accumulate / data.batches_per_epoch
    lines = [
        f"run       {short(run.path)}" + (" (goes on)" if run.last.exists() else ""),
        f"data      {data.describe()}",
        f"model     {describe_model(task)}",
        f"budget    {steps:,} steps × {tokens:,} tokens = {steps * tokens:,} tokens, {epochs:.2f} epochs",
        f"hardware  {describe_hardware(hardware)}",
    ]
    if data.is_bounded:
        lines.append(f"note      {data.describe_validation()}")
    if weights is not None:
        lines.append(f"weights   {weights.path}: model, size and tokenizer are theirs")
    if untrained := untrained_tokens(task, data):
        lines.append(
            f"note      {', '.join(untrained)}: new to these weights, their rows of the embedding are drawn at random "
            "and the adapter does not train them; choose a data/template whose tokens the weights know, or adapter=none"
        )
    if task.is_adapted and getattr(task.make_optimizer, "func", None) is Muon:
        lines.append(
            "note      Muon turns the factors of an update one by one: optimizer=adamw suits adapters"
        )
    lines += [
        f"note      {key} {change}, from step {each['from_step']} on"
        for each in run.record.get("segments") or ()
        for key, change in each["changes"].items()
    ]
    advice = few_steps(
        settings,
        steps,
        rows=data.train_rows,
        batches_per_epoch=data.batches_per_epoch,
        schedule=task.schedule,
    )
    lines += [f"note      {line}" for line in advice]
    if "stopped_at" in run.record and run.last.exists():
        lines.append(
            "note      this run was done: its learning rate follows the longer schedule now"
        )
    return "\n".join(lines)


def untrained_tokens(task: Task, data: DataModule) -> list[str]:
    """The special tokens that a model learns nothing of: its weights do not know them, and it is frozen."""
    before = getattr(data, "spec", None)  # the tokenizer of the weights
    body: Any = getattr(task.model, "body", task.model)
    if not task.is_adapted or body.embedding.weight.requires_grad or before is None:
        return []
    return [name for name in data.tokenizer.special_tokens if name not in before.special_tokens]


def say_undivided(config: DictConfig, hardware: Hardware) -> None:
    """Tell who chose a way to divide the work that there is one device only."""
    chosen = config.hardware.get("strategy")
    if chosen is not None and hardware.strategy is None:
        name = chosen._target_.rpartition(".")[2]
        say(
            f"note      {name}: one device only, so nothing is divided (hardware.devices=2 asks for two)"
        )


def describe_model(task: Task) -> str:
    """The model in a few words: what it is, how large, and how much of it is trained."""
    model = task.model
    name = type(model).__name__
    body = getattr(model, "body", None)
    if body is not None:
        name = f"{name} over {type(body).__name__}"
    total, trained = count(model), count(model, trained=True)
    line = f"{name}, {total:,} parameters"
    return line if trained == total else f"{line}, of which {trained:,} are trained"


def count(model: nn.Module, trained: bool = False) -> int:
    """How many parameters a model has, or how many of them are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


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
            with mistakes_at("logger"):
                loggers.append(make(str(run.path), run.path.name))
    for logger in loggers:
        with mistakes_at("logger"):
            logger.log_hyperparams(plain)
    return loggers


@dataclass
class Progress:
    """How far a run is, for the record of its end."""

    resumed: int = 0  # the step of the checkpoint that this sitting began from
    trainer: L.Trainer | None = None
    loggers: Sequence[Logger] = ()
    seconds: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds of this run's training, validations and all, those of earlier sittings included."""
        return round(self.seconds + time.perf_counter() - self.since, 1)

    @property
    def steps(self) -> int:
        """Optimizer steps taken, in earlier sittings too."""
        return max(self.resumed, self.trainer.global_step if self.trainer is not None else 0)

    @property
    def saved_steps(self) -> int:
        """Those of them that the newest checkpoint knows of."""
        found = [each.saved_step for each in self._callbacks if isinstance(each, Checkpoints)]
        return max([self.resumed, *found])

    @property
    def received(self) -> int:
        """The signal that asked training to stop; 0 if there was none."""
        found = [each.received or 0 for each in self._callbacks if isinstance(each, Interrupt)]
        return max([0, *found])

    @property
    def _callbacks(self) -> list[L.Callback]:
        return getattr(self.trainer, "callbacks", [])

    def end_loggers(self, exit_code: int) -> None:
        """End the run on W&B, if there is one, once: the next job of this process would land in it."""
        loggers, self.loggers = self.loggers, ()
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.finish(exit_code)


@contextmanager
def recorded(run: Run, resume: Resumption, command: str, rescue: str) -> Iterator[Progress]:
    """Record how a run ended if it did not end well, and tell how to go on.

    Args:
        run: the run, its record as it was.
        resume: where it goes on.
        command: goes on with it.
        rescue: goes on with it if it has diverged, when a value is added.
    """
    before = dict(run.record)
    progress = Progress(resume.step, seconds=before.get("seconds", 0.0))
    try:
        yield progress
    except BaseException as error:
        stop = interruption(error, progress)
        with suppress(OSError):  # on a full disk it stays at what was written last
            record_end(run, before, progress, error, was_stopped=stop is not None)
        if stop is not None:
            status = signals.status_of(signals.number_of(stop))
            tell_interruption(stop, run, progress, command)
            progress.end_loggers(status)
            raise SystemExit(status) from None
        if isinstance(error, DivergedError) and progress.saved_steps:
            error.say_more(f"To go on from step {progress.saved_steps}: {rescue}")
        progress.end_loggers(1)
        raise


def record_end(
    run: Run,
    before: Mapping[str, Any],
    progress: Progress,
    error: BaseException,
    *,
    was_stopped: bool,
) -> None:
    """Record that a run was interrupted or failed, unless it is done: by now, or since an earlier sitting."""
    if run.status == "done":
        run.update()  # in whatever line of the writing it was stopped
    elif before.get("status") == "done" and progress.steps == progress.resumed:
        run.put_back(before)
    elif was_stopped:
        run.finish("interrupted", steps=progress.saved_steps, seconds=progress.elapsed)
    else:
        run.finish("failed", steps=progress.steps, error=f"{type(error).__name__}: {error}")


def interruption(error: BaseException, progress: Progress) -> BaseException | None:
    """What stopped the run, if somebody did: between two steps, or at once, which Lightning makes an exit of.

    A signal to all processes of a job ends those that gather batches as well, before the step is finished.
    """
    if progress.received and "DataLoader worker" in str(error):
        return signals.Stopped(progress.received)
    kinds = (InterruptedRunError, KeyboardInterrupt)
    return next((each for each in (error, error.__context__) if isinstance(each, kinds)), None)


def tell_interruption(stop: BaseException, run: Run, progress: Progress, command: str) -> None:
    """Say what is saved of an interrupted run, and how it goes on."""
    is_at_once = signals.number_of(stop) == signal.SIGINT and not isinstance(
        stop, InterruptedRunError
    )
    how = "at once" if is_at_once else f"by {stop}"
    if distributed.is_first():
        new_console(stderr=True).print(
            f"stopped {how}{what_is_saved(run, progress)}.\nTo go on: {command}", soft_wrap=True
        )


def what_is_saved(run: Run, progress: Progress) -> str:
    """How far a run came that was interrupted, and how much of it the next sitting begins with."""
    steps, saved = progress.steps, progress.saved_steps
    if run.status == "done":
        return f"; the run is done, with {run.record['steps']} steps"
    if steps == 0:
        return " before the first step; nothing was there to save"
    if saved == 0:
        return f" after step {steps}; nothing is saved"
    if steps > saved:
        return f" after step {steps}; step {saved} is what is saved"
    return f" after step {steps}; it is saved"


def test(run: Run, trainer: L.Trainer, task: Task, data: DataModule) -> None:
    """Measure the best weights on the test part, and on the whole validation part if training read some of it.

    Without any that were saved, it measures the last.
    """
    parts: dict[Literal["test", "whole"], str] = {}
    if data.is_bounded:
        parts["whole"] = "validation"
    if data.dataset("test") is not None:
        parts["test"] = "test"
    if not parts:
        return
    if run.has_weights:
        try:
            best = read_usable(run, trainer.strategy.load_checkpoint)
        except DamagedCheckpointError as error:
            raise UserError(f"{error}; {ways_out(run)}") from error
        trainer.strategy.load_model_state_dict(best, strict=not task.is_adapted)
    for task.tested, part in parts.items():
        trainer.test(task, dataloaders=data.whole(part), verbose=False)


def close(
    run: Run, trainer: L.Trainer, task: Task, config: DictConfig, progress: "Progress"
) -> None:
    """Record the figures of a whole run and say what to do with it."""
    run.finish(
        "done",
        steps=trainer.max_steps,
        stopped_at=trainer.global_step,
        seconds=progress.elapsed,
        peak_memory=peak_memory(task.device),
        best_step=best_step(trainer),
        metrics=task.figures,
    )
    lines = [f"\ndone: {short(run.path)}"]
    for part, what in (("test", "test"), ("whole", "whole validation part:")):
        figures = [
            f"{name.removeprefix(f'{part}/')} {value:.4g}"
            for name, value in task.figures.items()
            if name.startswith(f"{part}/")
        ]
        if figures:
            lines.append(f"  {what:9s} {', '.join(figures)}")
    lines += [f"  warning   {line}" for line in task.warnings()]
    lines += [f"  {what:9s} {short(file)}" for what, file in run.results().items()]
    lines.append(f"  then      {_next_command(run, config)}")
    say("\n".join(lines))


def best_step(trainer: L.Trainer) -> int | None:
    """The step of the validation whose weights were kept as the best."""
    callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
    steps = [each.best_step for each in callbacks if isinstance(each, Checkpoints)]
    return steps[0] if steps else None


def say(text: str) -> None:
    """Print, once in a run, however many ranks it has."""
    if distributed.is_first():
        CONSOLE.print(text, soft_wrap=True)


def _is_done(run: Run, steps: int) -> bool:
    return run.status == "done" and run.record["steps"] >= steps


def _say_done(run: Run, config: DictConfig) -> None:
    say(
        f"{short(run.path)} is done already ({run.record['steps']:,} steps). Train it longer by a "
        "larger budget (trainer.max_steps or max_epochs), again from the start with rerun=true, or use it:\n"
        f"  {_next_command(run, config)}"
    )


def _next_command(run: Run, config: Any) -> str:
    """What to type next: the verb that puts such a task's runs to use."""
    if not run.has_weights:
        return "(nothing was saved to be used: callbacks.checkpoints is left out)"
    verb: str = locate(config.task._target_, config.trust).verb  # pyright: ignore[reportFunctionMemberAccess]
    words = (shell.program(), verb, f"weights.path={short(run.path)}")
    return shell.line(*words, modules=config.trust)


def _again(overrides: Sequence[str], options: Sequence[str]) -> list[str]:
    """The words that go on with this run: a rerun or a change, once begun, is not begun again."""
    kept = [word for word in overrides if not word.startswith(("rerun=", "resume="))]
    return ["train", *options, *kept]


def _rescue(again: Sequence[str], run: Run) -> list[str]:
    """The words that go on with a run that diverged; the values that it needs are the user's to choose."""
    is_named = any(key_of(word) == "name" for word in again)
    name = [] if is_named else [f"name={quoted(run.path.name)}"]
    return [*again, *name, "resume=allow_changes", "optimizer.lr=LOWER"]
