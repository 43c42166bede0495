"""Training, resuming and finishing a run."""

import os
from pathlib import Path
from typing import Literal

import lightning as L

from llm import distributed
from llm.callbacks.checkpoints import Checkpoints
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
from llm.training.lightning_trainer import make_trainer
from llm.training.next_commands import NextCommands
from llm.training.preflight import (
    require_memory_for_batch,
    require_more,
    require_same_base,
    require_same_configuration,
    require_same_text,
)
from llm.training.prepared_run import PreparedRun
from llm.training.recording import Progress, recording
from llm.training.resumption import (
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
    published_settings,
    save_setup,
)
from llm.training.summary import report_single_device, run_summary, size_record
from llm.training.training_config import TrainingConfig


def train(config: TrainingConfig, hardware: Hardware) -> Run:
    """Train a run in its directory.

    A finished run is not changed; an interrupted one resumes where it stopped. All checks are done before the
    directory is changed.

    Args:
        config: the configuration.
        hardware: the hardware of the configuration, with its devices counted.

    Returns:
        The run.

    Raises:
        UserError: the directory contains a run with another configuration, another process trains there, or training
            diverged.
        SystemExit: training was interrupted; status 143 after SIGTERM, otherwise 130.
    """
    tree, weights, settings = config.tree, config.weights, config.trainer
    run = (Run if distributed.is_first() else ReadOnlyRun)(
        Path(config.composed.directory).absolute()
    )
    # All ranks must decide from the same record: another process may finish the run in the meantime.
    run.record = distributed.broadcast(run.record)
    meaning = fingerprint(tree)
    if not config.rerun:
        require_same_configuration(run, tree, meaning)
    hardware = keep_precision(hardware, run, tree)
    data = prepare_data(tree, weights)
    require_memory_for_batch(data, tree)
    steps = settings.steps(data.batches_per_epoch, data.tokens_per_batch)
    data.bound_validation(settings.validation_bytes(steps, data.tokens_per_batch))
    base = weights.fingerprint if weights is not None else None
    commands = NextCommands(config, run)
    if not config.rerun:
        require_same_text(run, data)
        require_same_base(run, base)
        require_more(run, steps)
        if _is_done(run, steps):
            _say_done(run, commands)
            return run
        require_last(run)
    task = make_task(
        config.task, settings=settings, hardware=hardware, weights=weights, adapter=config.adapter
    )
    with config_errors_at("task"):
        task.check(data)
    with config_errors_at("optimizer"):  # it may not suit the trained parameters of the adapter
        task.make_optimizer(task.parameter_groups(task.model))

    prepared = PreparedRun(config=config, hardware=hardware, data=data, task=task, steps=steps)
    distributed.barrier()  # every rank has read the directory before the first rank writes to it
    with run.claimed():
        run.record = distributed.broadcast(run.record)
        if not config.rerun and _is_done(run, steps):  # by another process, in the meantime
            _say_done(run, commands)
            return run
        if config.rerun and (backup := run.archive()):
            say(f"the earlier run was moved to {backup}")
        resume, segments = find_resumption(run, tree, meaning, is_sharded=task.is_sharded)
        with recording(run, resume, commands) as progress, explain_os_errors():
            run.start(
                name=run.path.name,
                fingerprint=meaning,
                base=base,
                **published_settings(weights),
                request=fingerprint(config.composed.config, IGNORE_BUT_BUDGET),
                command=commands.recorded,
                sweep=os.environ.get("LLM_SWEEP"),
                **(
                    run_metadata(tree, config.composed.own, choices=config.composed.choices)
                    | segments
                ),
                **size_record(prepared),
            )
            if distributed.is_first():
                save_setup(run, tree, hardware, data)
                progress.loggers = make_loggers(config.logger, config=tree, run=run, resume=resume)
            say("\n".join([*resume.notes, run_summary(prepared, run)]))
            report_single_device(prepared)
            trainer = make_trainer(
                prepared,
                callbacks=choose_callbacks(config.callbacks, task, data),
                loggers=progress.loggers,
                directory=run.path,
                validates_first=weights is not None and resume.path is None,
                opened=resume.opened,
            )
            progress.trainer = trainer
            trainer.fit(task, datamodule=data, ckpt_path=resume.path, weights_only=True)
            run.update(trained=True)
            test_best(run, trainer, task, data)
            progress.end_loggers(0)
            finish(run, trainer, task, progress, then=commands.use)
    return run


def test_best(run: Run, trainer: L.Trainer, task: Task, data: DataModule) -> None:
    """Measure the best weights on the test part, and on the whole validation part if training used a subset of it.

    If no weights were saved, the last ones are measured.
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
        trainer.test(task, dataloaders=data.whole(part), verbose=False)


def finish(run: Run, trainer: L.Trainer, task: Task, progress: Progress, *, then: str) -> None:
    """Record and print the metrics of a finished run, and print the command that uses it."""
    run.finish(
        "done",
        steps=trainer.max_steps,
        stopped_at=trainer.global_step,
        seconds=progress.elapsed,
        peak_memory=peak_memory(task.device),
        best_step=best_step(trainer),
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


def best_step(trainer: L.Trainer) -> int | None:
    """Return the step whose weights were saved as the best."""
    callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
    steps = [each.best_step for each in callbacks if isinstance(each, Checkpoints)]
    return steps[0] if steps else None


def _is_done(run: Run, steps: int) -> bool:
    return run.status == "done" and run.record["steps"] >= steps


def _say_done(run: Run, commands: NextCommands) -> None:
    say(
        f"{display_path(run.path)} is done already ({run.record['steps']:,} steps). Train it longer with a "
        "larger budget (trainer.max_steps or max_epochs), train it again with rerun=true, or use it:\n"
        f"  {commands.use}"
    )
