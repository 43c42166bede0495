"""How a run is trained, resumed and closed."""

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
from llm.config.fingerprint import WATCHED, fingerprint
from llm.config.os_errors import explained
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
    find_resumption,
    in_the_same_precision,
    require_last,
    ways_out,
)
from llm.training.setup import (
    choose_callbacks,
    make_loggers,
    make_task,
    prepare_data,
    published,
    save_setup,
)
from llm.training.summary import run_summary, say_undivided, size_record
from llm.training.training_config import TrainingConfig


def train(config: TrainingConfig, hardware: Hardware) -> Run:
    """Train a run in its directory.

    A run that is done is left alone; one that was interrupted resumes where it stopped. Everything that can be found
    wrong is found before the directory is touched.

    Args:
        config: what to train.
        hardware: the hardware of the configuration, with its devices counted.

    Returns:
        The run.

    Raises:
        UserError: the configuration differs from the one the directory was trained under, another process trains
            there, or training diverged.
        SystemExit: after an interruption, with status 143 by SIGTERM, else 130.
    """
    tree, weights, settings = config.tree, config.weights, config.trainer
    run = (Run if distributed.is_first() else ReadOnlyRun)(
        Path(config.composed.directory).absolute()
    )
    # All ranks decide by one record: another process may end the run meanwhile.
    run.record = distributed.broadcast(run.record)
    meaning = fingerprint(tree)
    if not config.rerun:
        require_same_configuration(run, tree, meaning)
    hardware = in_the_same_precision(hardware, run, tree)
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
    with config_errors_at("optimizer"):  # which may not suit what the adapter trains
        task.make_optimizer(task.parameter_groups(task.model))

    prepared = PreparedRun(config=config, hardware=hardware, data=data, task=task, steps=steps)
    distributed.barrier()  # no rank reads what the first one is about to write
    with run.claimed():
        run.record = distributed.broadcast(run.record)
        if not config.rerun and _is_done(run, steps):  # by another process, meanwhile
            _say_done(run, commands)
            return run
        if config.rerun and (aside := run.archive()):
            say(f"the run that stood here is kept as {aside}")
        resume, segments = find_resumption(run, tree, meaning, is_sharded=task.is_sharded)
        with recording(run, resume, commands) as progress, explained():
            run.start(
                name=run.path.name,
                fingerprint=meaning,
                base=base,
                **published(weights),
                request=fingerprint(config.composed.config, WATCHED),
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
            say_undivided(prepared)
            trainer = make_trainer(
                prepared,
                callbacks=choose_callbacks(config.callbacks, task, data),
                loggers=progress.loggers,
                directory=run.path,
                before=weights is not None and resume.path is None,
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


def finish(run: Run, trainer: L.Trainer, task: Task, progress: Progress, *, then: str) -> None:
    """Record the metrics of a whole run and print them, and the command to use it with."""
    run.finish(
        "done",
        steps=trainer.max_steps,
        stopped_at=trainer.global_step,
        seconds=progress.elapsed,
        peak_memory=peak_memory(task.device),
        best_step=best_step(trainer),
        metrics=task.figures,
    )
    lines = [f"\ndone: {display_path(run.path)}"]
    for part, what in (("test", "test"), ("whole", "whole validation part:")):
        figures = [
            f"{name.removeprefix(f'{part}/')} {value:.4g}"
            for name, value in task.figures.items()
            if name.startswith(f"{part}/")
        ]
        if figures:
            lines.append(f"  {what:9s} {', '.join(figures)}")
    lines += [f"  warning   {line}" for line in task.warnings()]
    lines += [f"  {what:9s} {display_path(file)}" for what, file in run.results().items()]
    lines.append(f"  then      {then}")
    say("\n".join(lines))


def best_step(trainer: L.Trainer) -> int | None:
    """The step of the validation whose weights were kept as the best."""
    callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
    steps = [each.best_step for each in callbacks if isinstance(each, Checkpoints)]
    return steps[0] if steps else None


def _is_done(run: Run, steps: int) -> bool:
    return run.status == "done" and run.record["steps"] >= steps


def _say_done(run: Run, commands: NextCommands) -> None:
    say(
        f"{display_path(run.path)} is done already ({run.record['steps']:,} steps). Train it longer by a "
        "larger budget (trainer.max_steps or max_epochs), again from the start with rerun=true, or use it:\n"
        f"  {commands.use}"
    )
