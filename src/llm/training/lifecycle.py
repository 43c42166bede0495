"""Training, resuming and finishing a run."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning as L

from llm import distributed
from llm.callbacks.throughput import peak_memory
from llm.checkpoints.checkpoint_file import read_usable
from llm.checkpoints.checksums import DamagedCheckpointError
from llm.config.build import config_errors_at
from llm.config.errors import UserError
from llm.config.fingerprint import IGNORE_BUT_BUDGET, fingerprint
from llm.config.os_errors import explain_os_errors
from llm.data.base import DataModule
from llm.hardware import Hardware
from llm.runs import ReadOnlyRun, Run, display_path, run_metadata
from llm.tasks.base import Task
from llm.terminal.announce import say
from llm.training.adoption import adopted_options
from llm.training.lightning_trainer import make_trainer
from llm.training.next_commands import NextCommands
from llm.training.preflight import (
    require_memory_for_batch,
    require_same_base,
    require_same_configuration,
    require_same_text,
    require_unused_budget,
)
from llm.training.prepared_run import PreparedRun
from llm.training.recording import Progress, recording
from llm.training.resumption import (
    Resumption,
    describe_remedies,
    find_resumption,
    keep_precision,
    require_last,
)
from llm.training.setup import (
    choose_callbacks,
    make_loggers,
    make_task,
    prepare_data,
    save_setup,
)
from llm.training.summary import run_summary, size_record
from llm.training.training_config import TrainingConfig


def train(config: TrainingConfig, hardware: Hardware) -> Run:
    """Train a run in its directory, after all checks, and return it.

    A finished run is not changed; an interrupted one resumes where it stopped.

    Raises:
        UserError: the directory contains a run with another configuration, another process trains there, or training
            diverged.
        SystemExit: training was interrupted; status 143 after SIGTERM, otherwise 130.
    """
    directory = Path(config.composed.directory).absolute()
    run = Run(directory) if distributed.is_first() else ReadOnlyRun(directory)
    # All ranks decide from the same record, because another process may finish the run in the meantime.
    run.record = distributed.broadcast(run.record)
    commands = NextCommands(config, run)
    prepared = prepare(config, hardware, run)
    if prepared is None:
        return say_done(run, commands)
    distributed.barrier()  # every rank has read the directory before the first rank writes to it
    with run.claimed():
        run.record = distributed.broadcast(run.record)
        if _is_done(run, config, prepared.steps):  # by another process
            return say_done(run, commands)
        if config.rerun and (backup := run.archive()):
            say(f"the earlier run was moved to {backup}")
        resume, segments = find_resumption(
            run, config.tree, prepared.meaning, is_sharded=prepared.task.is_sharded
        )
        with recording(run, resume, commands) as progress, explain_os_errors():
            record_start(run, prepared, command=commands.recorded, segments=segments)
            train_and_test(run, prepared, resume, progress)
            progress.end_loggers(0)
            finish(run, prepared.task, progress, then=commands.use)
    return run


def prepare(config: TrainingConfig, hardware: Hardware, run: Run) -> PreparedRun | None:
    """Check a run, read its data and build its task; None if it is done.

    Raises:
        ConfigError: the run cannot begin or resume with this configuration.
    """
    tree, weights, settings = config.tree, config.weights, config.trainer
    meaning = fingerprint(tree)  # before reading the data fills in values
    base = None if weights is None else weights.fingerprint
    if not config.rerun:
        require_same_configuration(run, tree, meaning)
    hardware = keep_precision(hardware, run, tree)
    data = prepare_data(tree, weights)
    require_memory_for_batch(data, tree)
    steps = settings.steps(data.batches_per_epoch, data.tokens_per_batch)
    data.validation_limit = settings.validation_bytes(steps, data.tokens_per_batch)
    if not config.rerun:
        require_same_text(run, data)
        require_same_base(run, base)
        require_unused_budget(run, steps)
        if _is_done(run, config, steps):
            return None
        require_last(run)
    task = make_task(
        config.task, settings=settings, hardware=hardware, weights=weights, adapter=config.adapter
    )
    with config_errors_at("task"):
        task.check(data)
    with config_errors_at("optimizer"):  # it may not suit the trained parameters of the adapter
        task.make_optimizer(task.parameter_groups(task.model))
    return PreparedRun(
        config=config,
        hardware=hardware,
        data=data,
        task=task,
        steps=steps,
        meaning=meaning,
        base=base,
    )


def record_start(
    run: Run, prepared: PreparedRun, *, command: str, segments: dict[str, Any]
) -> None:
    """Write the record of a run that begins or resumes."""
    composed, weights = prepared.config.composed, prepared.config.weights
    published = None if weights is None else weights.published
    metadata = run_metadata(prepared.config.tree, composed.own, choices=composed.choices)
    metadata |= adopted_options(composed, weights)
    run.start(
        name=run.path.name,
        fingerprint=prepared.meaning,
        base=prepared.base,
        **({} if published is None else {"published": asdict(published)}),
        request=fingerprint(composed.config, IGNORE_BUT_BUDGET),
        command=command,
        sweep=os.environ.get("LLM_SWEEP"),
        **(metadata | segments),
        **size_record(prepared),
    )


def train_and_test(run: Run, prepared: PreparedRun, resume: Resumption, progress: Progress) -> None:
    """Train a run from where it resumes, and measure its best weights."""
    config, task, data = prepared.config, prepared.task, prepared.data
    if distributed.is_first():
        save_setup(run, config.tree, prepared.hardware, data)
        progress.loggers = make_loggers(config.logger, config=config.tree, run=run, resume=resume)
    say("\n".join([*resume.notes, run_summary(prepared, run)]))
    progress.trainer = trainer = make_trainer(
        prepared,
        callbacks=choose_callbacks(config.callbacks, task, data),
        loggers=progress.loggers,
        directory=run.path,
        validates_first=config.weights is not None and resume.path is None,
        opened=resume.opened,
    )
    trainer.fit(task, datamodule=data, ckpt_path=resume.path, weights_only=True)
    run.update(trained=True)
    test_best(run, trainer, task, data)


def test_best(run: Run, trainer: L.Trainer, task: Task, data: DataModule) -> None:
    """Measure the best weights on the test part, and on the whole validation part if training used a subset.

    If no weights were saved, measure the last ones.
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
            raise UserError(f"{error}; {describe_remedies(run)}") from error
        trainer.strategy.load_model_state_dict(best, strict=not task.is_adapted)
    for task.tested, part in parts.items():
        trainer.test(task, dataloaders=data.evaluation_loader(part), verbose=False)


def finish(run: Run, task: Task, progress: Progress, *, then: str) -> None:
    """Record and print the metrics of a finished run, with the command that uses it."""
    trainer = progress.trainer
    assert trainer is not None
    run.finish(
        "done",
        steps=trainer.max_steps,
        stopped_at=trainer.global_step,
        seconds=progress.elapsed,
        peak_memory=peak_memory(task.device),
        best_step=progress.best_step,
        metrics=task.metrics,
    )
    lines = [f"\ndone: {display_path(run.path)}"]
    for part, title in (("test", "test"), ("whole", "whole validation part:")):
        metrics = [
            f"{name.removeprefix(f'{part}/')} {value:.4g}"
            for name, value in task.metrics.items()
            if name.startswith(f"{part}/")
        ]
        if metrics:
            lines.append(f"  {title:9s} {', '.join(metrics)}")
    lines += [f"  warning   {line}" for line in task.warnings()]
    lines += [f"  {what:9s} {display_path(file)}" for what, file in run.results().items()]
    lines.append(f"  then      {then}")
    say("\n".join(lines))


def _is_done(run: Run, config: TrainingConfig, steps: int) -> bool:
    return not config.rerun and run.status == "done" and run.record["steps"] >= steps


def say_done(run: Run, commands: NextCommands) -> Run:
    """Print how to use a run that is done, and return it."""
    say(
        f"{display_path(run.path)} is done already ({run.record['steps']:,} steps). Train it longer with a "
        "larger budget (trainer.max_steps or max_epochs), train it again with rerun=true, or use it:\n"
        f"  {commands.use}"
    )
    return run
