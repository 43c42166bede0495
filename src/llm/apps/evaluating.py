"""How a run is measured, and its answers judged."""

import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from llm.adapters.adapter import load_adapter_state
from llm.apps.training import make_task, prepare
from llm.apps.writing import autocast
from llm.callbacks.responses import answer, row_of
from llm.config.build import build, mistakes_at
from llm.config.check import check
from llm.config.errors import ConfigError
from llm.data.instruction import InstructionDataModule
from llm.data.module import DataModule
from llm.data.tokenization import progress_bar
from llm.evaluation import pairwise, pointwise
from llm.evaluation.answers import Answer, answers_of, difference, matched, quality, read_answers
from llm.evaluation.judge import Judgements, Question
from llm.evaluation.openai import OpenAI
from llm.hardware import Hardware
from llm.runs import RESULTS, now, versions
from llm.tasks.task import Task
from llm.weights.filling import fill
from llm.weights.run import RunWeights

CONSOLE = Console(highlight=False)
PARTS = ("data", "task", "adapter", "trainer")


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
    theirs = config.against and read_answers(Path(config.against) / RESULTS["responses"])
    with mistakes_at("hardware"):
        hardware: Hardware = build(config.hardware).resolve()
    data, task = restore(weights, hardware, config.test_path)
    part = choose_part(data, config.part, config.test_path)
    answering = isinstance(data, InstructionDataModule)
    if (judge or theirs) and not answering:
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
    report = plain(report)
    file = weights.run.path / "evaluation.json"
    file.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    CONSOLE.print(table(report))
    CONSOLE.print(f"kept in {file}", soft_wrap=True)
    return report


def restore(
    weights: RunWeights, hardware: Hardware, test_path: str | None
) -> tuple[DataModule, Task]:
    """A run's data and task as they were trained, the task's model with what it has learned.

    Raises:
        ConfigError: the run's configuration cannot be built, its checkpoint cannot be read, the weights
            under its adapter are gone, or the data are others than it was trained on.
    """
    config = deepcopy(weights.config)
    if test_path is not None:
        config.data.test_path = test_path
    check(OmegaConf.create({**{part: config.get(part) for part in PARTS}, "trust": config.trust}))
    # An adapter stands on the weights that the run began from, and a reference is those weights.
    from_base = config.get("adapter") is not None or "reference" in config.task
    base = weights.base_weights(config) if from_base else None
    data = prepare(config, weights) if test_path is not None else same_data(config, weights)
    task = make_task(config, build(config.trainer), hardware, base)
    if reference := getattr(task, "reference", None):
        reference.start(task.model)
    if task.is_adapted:
        with mistakes_at("weights.path"):
            load_adapter_state(task.model, weights.parameters())
    else:
        fill(task.model, weights.parameters(), f"weights.path={weights.path}")
    return data, task


def same_data(config: DictConfig, weights: RunWeights) -> DataModule:
    """The data that a run was trained on.

    They are known by a fingerprint, of which the tokenizer is part: that of the weights the run began
    from, or one that is fitted again and comes out the same.

    Raises:
        ConfigError: they have changed.
    """
    try:
        base = build(config.weights)
    except ConfigError:
        CONSOLE.print(
            f"note: {config.weights.path}, from which {weights.path} began, is gone: "
            "whether its data are the same cannot be told",
            soft_wrap=True,
        )
        return prepare(config, weights)
    data = prepare(config, base)
    if data.fingerprint != weights.run.record.get("data"):
        raise ConfigError(
            f"weights.path: the data that {weights.path} was trained on have changed since, so some of its "
            "test part may be what it has learned; restore the files, or name one to test on in test_path="
        )
    return data


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
    file = weights.run.path / RESULTS["responses"]
    own = part == "test" and config.test_path is None and weights.checkpoint == "best"
    if own and file.is_file():
        return read_answers(file)
    conversations = data.raw[part]
    responses = answer(data, conversations, task.model.eval(), config.max_tokens)
    rows = [row_of(*each) for each in zip(conversations, responses, strict=True)]
    if own:
        file.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return answers_of(rows)


def rate(
    answers: Sequence[Answer],
    theirs: Sequence[Answer] | None,
    judge: OpenAI | None,
    file: Path,
) -> dict[str, Any]:
    """How good answers are beside their references, by a judge, and against another run's.

    Args:
        answers: the run's own.
        theirs: another run's.
        judge: the model that judges; None leaves it to the references.
        file: where its judgements are kept.
    """
    report = {"quality": quality(answers)}
    pairs = matched(answers, theirs) if theirs is not None else []
    if pairs:
        report["against"] = difference(pairs)
    if judge is not None:
        judgements = Judgements(judge, file)
        scores = ask(judgements, [pointwise.score(*each) for each in answers], "scoring")
        report["judge"] = {"model": judge.model, "address": judge.address}
        report["judge"] |= pointwise.summary(scores)
        if pairs:
            orders = [pairwise.both_orders(*our, other.response) for our, other in pairs]
            choices = ask(judgements, [each for both in orders for each in both], "comparing")
            both = list(zip(choices[::2], choices[1::2], strict=True))
            report["against"] |= pairwise.summary(both)
    return report


def ask(judgements: Judgements, questions: Sequence[Question], what: str) -> list[Any]:
    """The verdicts on some questions, with a bar."""
    with progress_bar() as bar:
        return list(bar.track(judgements.ask(questions), len(questions), description=what))


def plain(report: Any) -> Any:
    """A report as JSON has it: what is not a number is null."""
    if isinstance(report, Mapping):
        return {name: plain(value) for name, value in report.items()}
    return None if isinstance(report, float) and not math.isfinite(report) else report


def table(report: Mapping[str, Any]) -> Table:
    """What a person looks at: each figure, with its interval where it has one."""
    lines = Table(title=f"{report['run']}, {report['part']}", title_justify="left")
    lines.add_column("figure")
    lines.add_column("value", justify="right")
    lines.add_column("95 % interval", justify="right")
    for section in ("figures", "quality", "judge", "against"):
        for name, value in report.get(section, {}).items():
            lines.add_row(*row(f"{section} {name}" if section == "against" else name, value))
    return lines


def row(name: str, value: Any) -> tuple[str, str, str]:
    """A line of the table."""
    if not isinstance(value, Mapping):
        return name, shown(value), ""
    interval = f"{shown(value['low'])} to {shown(value['high'])}"
    return name, shown(value["mean"]), "" if value["low"] is None else interval


def shown(value: Any) -> str:
    """A figure in four digits, a count or a word whole."""
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
