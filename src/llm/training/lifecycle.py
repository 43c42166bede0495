"""How a run is trained, resumed and closed."""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from omegaconf import DictConfig

from llm import distributed
from llm.callbacks.checkpoints import Checkpoints
from llm.callbacks.throughput import peak_memory
from llm.checkpoints.checkpoint_file import read_usable
from llm.checkpoints.checksums import DamagedCheckpointError
from llm.config.allowlist import locate
from llm.config.budget import give_one_budget
from llm.config.build import build, config_errors_at
from llm.config.check import check
from llm.config.errors import UserError
from llm.config.fingerprint import WATCHED, fingerprint
from llm.config.os_errors import explained
from llm.config.overrides import key_of
from llm.config.texts import quoted_text
from llm.data.base import DataModule
from llm.hardware import Hardware
from llm.runs import ReadOnlyRun, Run, display_path, run_metadata
from llm.tasks.base import Task
from llm.terminal import shell
from llm.terminal.announce import say
from llm.training.preflight import (
    require_even_shares,
    require_memory_for_batch,
    require_more,
    require_same_base,
    require_same_configuration,
    require_same_text,
)
from llm.training.recording import Progress, recording
from llm.training.resumption import (
    ALLOW_CHANGES,
    find_resumption,
    in_the_same_precision,
    require_last,
    ways_out,
)
from llm.training.setup import (
    adopt,
    make_callbacks,
    make_loggers,
    make_task,
    prepare_data,
    published,
    save_setup,
)
from llm.training.summary import run_summary, say_undivided, size_record
from llm.training.trainer import TrainerSettings, make_trainer
from llm.weights.base import Weights

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
    with config_errors_at("hardware"):
        hardware: Hardware = build(config.hardware).resolve()
    require_even_shares(config, hardware)
    run = (Run if distributed.is_first() else ReadOnlyRun)(Path(directory))
    # All decide by one record: another process may end the run meanwhile.
    run.record = distributed.broadcast(run.record)
    meaning = fingerprint(config)
    if not config.rerun:
        require_same_configuration(run, config, meaning)
    hardware = in_the_same_precision(hardware, run, config)
    data = prepare_data(config, weights)
    require_memory_for_batch(data, config)
    settings: TrainerSettings = build(config.trainer)
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
    with config_errors_at("task"):
        task.check(data)
    with config_errors_at("optimizer"):  # which may not suit what the adapter trains
        task.make_optimizer(task.parameter_groups(task.model))

    distributed.barrier()  # no rank reads what the first one is about to write
    with run.claimed():
        run.record = distributed.broadcast(run.record)
        if not config.rerun and _is_done(run, steps):  # by another process, meanwhile
            _say_done(run, config)
            return run
        if config.rerun and (aside := run.archive()):
            say(f"the run that stood here is kept as {aside}")
        resume, parts = distributed.broadcast(
            find_resumption(run, config, meaning) if distributed.is_first() else None
        )
        command = shell.command_line(shell.program(), *again, modules=config.trust)
        slower = _at_lower_rate(again, run, config)
        lines = {
            "rescue": shell.command_line(
                shell.program(), *slower, f"resume={ALLOW_CHANGES}", modules=config.trust
            ),
            "restart": shell.command_line(shell.program(), *slower, modules=config.trust),
        }
        with recording(run, resume, command, **lines) as progress, explained():
            run.start(
                name=run.path.name,
                fingerprint=meaning,
                base=base,
                **published(weights),
                request=request,
                command=shell.command_line("llm", *again, modules=config.trust),
                sweep=os.environ.get("LLM_SWEEP"),
                **(run_metadata(config, overrides, choices or {}) | parts),
                **size_record(task, data, settings, steps, hardware),
            )
            if distributed.is_first():
                save_setup(run, config, hardware, data)
                progress.loggers = make_loggers(config, run, resume)
            say(
                "\n".join(
                    [
                        *resume.notes,
                        run_summary(run, task, data, hardware, steps, settings, weights),
                    ]
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
            test_best(run, trainer, task, data)
            progress.end_loggers(0)
            finish(run, trainer, task, config, progress)
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


def finish(
    run: Run, trainer: L.Trainer, task: Task, config: DictConfig, progress: Progress
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
    lines.append(f"  then      {_next_command(run, config)}")
    say("\n".join(lines))


def best_step(trainer: L.Trainer) -> int | None:
    """The step of the validation whose weights were kept as the best."""
    callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
    steps = [each.best_step for each in callbacks if isinstance(each, Checkpoints)]
    return steps[0] if steps else None


def _is_done(run: Run, steps: int) -> bool:
    return run.status == "done" and run.record["steps"] >= steps


def _say_done(run: Run, config: DictConfig) -> None:
    say(
        f"{display_path(run.path)} is done already ({run.record['steps']:,} steps). Train it longer by a "
        "larger budget (trainer.max_steps or max_epochs), again from the start with rerun=true, or use it:\n"
        f"  {_next_command(run, config)}"
    )


def _next_command(run: Run, config: Any) -> str:
    """What to type next: the command that uses such a task's runs."""
    if not run.has_weights:
        return "(nothing was saved to be used: callbacks.checkpoints is left out)"
    command: str = locate(config.task._target_, config.trust).command  # pyright: ignore[reportFunctionMemberAccess]
    words = (shell.program(), command, f"weights.path={display_path(run.path)}")
    return shell.command_line(*words, modules=config.trust)


def _again(overrides: Sequence[str], options: Sequence[str]) -> list[str]:
    """The words that go on with this run: a rerun or a change, once begun, is not begun again."""
    kept = [word for word in overrides if not word.startswith(("rerun=", "resume="))]
    return ["train", *options, *kept]


def _at_lower_rate(again: Sequence[str], run: Run, config: DictConfig) -> list[str]:
    """The words that train a run that diverged at a tenth of its learning rate."""
    is_named = any(key_of(word) == "name" for word in again)
    name = [] if is_named else [f"name={quoted_text(run.path.name)}"]
    rate = config.optimizer.get("lr")
    others = [word for word in again if key_of(word) != "optimizer.lr"]
    return [*others, *name, f"optimizer.lr={rate / 10:g}" if rate else "optimizer.lr=…"]
