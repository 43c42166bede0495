"""How a run is measured, and its answers rated."""

import json
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig

from llm.apps.loading import autocast, use_hardware
from llm.apps.rating import rate
from llm.apps.reporting import plain, table
from llm.apps.restoring import restore
from llm.callbacks.responses import answer, row_of
from llm.config.build import build
from llm.config.check import check
from llm.config.errors import ConfigError
from llm.console import new_console
from llm.data.instruction import InstructionDataModule
from llm.data.module import DataModule
from llm.evaluation.answers import Answer, answers_of, read_answers, write_answers
from llm.hardware import Hardware
from llm.runs import RESULTS, now, versions
from llm.tasks.task import Task
from llm.weights.run import RunWeights

CONSOLE = new_console()


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Measure what a composed configuration of `llm evaluate` asks for, print it and keep it.

    Returns:
        What `evaluation.json` in the run directory holds.

    Raises:
        UserError: the configuration is wrong, the run is none, or its data have changed; the run has
            no answers to judge, or the judge does not answer.
    """
    check(config)
    weights, judge = build(config.weights), build(config.judge)
    if not isinstance(weights, RunWeights):
        raise ConfigError("weights: llm evaluate measures runs; use weights=run weights.path=…")
    other = config.against
    theirs = None if other is None else read_answers(Path(other) / RESULTS["responses"])
    hardware = use_hardware(config)
    data, task = restore(weights, hardware, config.test_path, config.malformed)
    part = choose_part(data, config.part, config.test_path)
    answering = isinstance(data, InstructionDataModule)
    if (judge or theirs is not None) and not answering:
        raise ConfigError("judge, against: this run answers no instructions; leave both out")
    report = {
        "run": str(weights.path),
        "checkpoint": weights.checkpoint,
        "data": data.describe(),
        "part": config.test_path or part,
        "date": now(),
        "versions": versions(),
        "figures": measure(task, data, part, hardware),
    }
    if answering:
        task.to(hardware.accelerator)
        with autocast(hardware):
            answers = answers_to(data, task, part, config, weights)
        report |= rate(answers, theirs, judge, weights.run.path / "judgements.jsonl")
    if theirs is not None:
        report["against"] = {"against": other, **report["against"]}
    report = plain(report)
    file = weights.run.path / "evaluation.json"
    file.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    CONSOLE.print(table(report))
    CONSOLE.print(f"kept in {file}", soft_wrap=True)
    return report


def choose_part(data: DataModule, part: str | None, test_path: str | None) -> str:
    """The part to measure on: the one asked for, or the test part where there is one.

    Raises:
        ConfigError: there is no such part.
    """
    if test_path is not None and part == "validation":
        raise ConfigError("part, test_path: a file of its own is a test part; leave part out")
    if part is None:
        return "validation" if data.dataset("test") is None else "test"
    if data.dataset(part) is None:
        raise ConfigError(f"part={part}: these data have none ({data.describe()})")
    return part


def measure(task: Task, data: DataModule, part: str, hardware: Hardware) -> dict[str, float]:
    """The task's own figures over a part."""
    trainer = L.Trainer(
        accelerator=hardware.accelerator,
        devices=1,
        precision=hardware.lightning_precision,  # pyright: ignore[reportArgumentType]
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=CONSOLE.is_terminal,
        enable_model_summary=False,
    )
    run = trainer.test if part == "test" else trainer.validate
    run(task, datamodule=data, verbose=False)
    return {name.partition("/")[2]: value for name, value in task.figures.items()}


def answers_to(
    data: InstructionDataModule, task: Task, part: str, config: DictConfig, weights: RunWeights
) -> list[Answer]:
    """The answers to a part: those of the end of the training, or new ones, likeliest token by token."""
    run = weights.run
    file = run.path / RESULTS["responses"]
    own = part == "test" and config.test_path is None and weights.checkpoint == "best"
    if own and file.is_file() and file.stat().st_mtime >= weights.file().stat().st_mtime:
        return read_answers(file)  # no step was taken since
    conversations = data.raw[part]
    responses = answer(data, conversations, task.model.eval(), config.max_tokens)
    rows = [row_of(*each) for each in zip(conversations, responses, strict=True)]
    return write_answers(file, rows) if own else answers_of(rows)
