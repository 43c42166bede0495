"""`llm evaluate`: measure a run or a model on data that it was not trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
from omegaconf import OmegaConf

from llm.callbacks.responses import response_rows
from llm.config.base import Command
from llm.config.build import build
from llm.config.check import check_nodes
from llm.config.deferred import Deferred
from llm.config.errors import ConfigError
from llm.config.rules import Rule
from llm.data.base import DataModule
from llm.data.corpora.preprocessing import Preprocessing, steps_of
from llm.data.corpora.text import TextDataModule
from llm.data.corpora.text_files import TextFiles
from llm.data.examples.instruction import InstructionDataModule
from llm.data.naming import rename_keys
from llm.evaluation.evaluation_rules import RULES, responses_of_run, trained_data
from llm.evaluation.evaluation_table import plain_report, report_table
from llm.evaluation.openai_client import OpenAI
from llm.evaluation.response_scores import Response, read_responses, responses_of, write_responses
from llm.evaluation.scoring import rate
from llm.evaluation.text_likelihood import measure_text
from llm.files import write_json
from llm.generation.generation_settings import GenerationSettings
from llm.generation.model_loading import (
    autocast,
    load_language_model,
    use_hardware,
    weights_are_trained,
)
from llm.hardware import Hardware
from llm.runs import RESULTS, now, versions
from llm.tasks.base import Task
from llm.terminal.console import new_console
from llm.training.saved_run import restore_run
from llm.weights.base import Weights
from llm.weights.run import RunWeights

CONSOLE = new_console()
# The keys of text files, with their names in this command's configuration.
KEYS = {
    **{key: f"files.{key}" for key in ("text_field", "suffixes", "encoding")},
    **{key: f"files.{key}" for key in ("delimiter", "quoting", "document_separator")},
    "path": "test_path",
}


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Measure a run or a model on data that it was not trained on."""

    part: Literal["test", "validation"] | None
    test_path: str | None
    output: str | None
    malformed: Literal["stop", "skip"]
    against: str | None
    max_tokens: int
    seed: int
    files: Callable[[str], TextFiles]
    hardware: Hardware
    weights: Weights
    judge: OpenAI | None

    rules: ClassVar[Sequence[Rule]] = (weights_are_trained, *RULES)

    def run(self) -> dict[str, Any]:
        """Measure, print the results and write them to a file.

        Returns:
            The content of the file.

        Raises:
            UserError: the data have changed or lack the part, or the judge does not answer.
        """
        weights = self.weights
        file = self.results_file(weights)
        if isinstance(weights, RunWeights) and not self.predicts_text(weights):
            report = plain_report(self.evaluate_run(weights))
        else:
            report = plain_report(self.evaluate_text(weights))
        write_json(file, report)
        CONSOLE.print(report_table(report))
        CONSOLE.print(f"wrote  {file}", soft_wrap=True)
        return report

    def results_file(self, weights: Weights) -> Path:
        """Return the file for the results; without `output` a new one, so that earlier results are kept."""
        if self.output is not None:
            return Path(self.output)
        path = Path(weights.path)
        first = (path if path.is_dir() else Path()) / "evaluation.json"
        numbered = (first.with_stem(f"{first.stem}_{number}") for number in count(2))
        return next(file for file in chain([first], numbered) if not file.exists())

    def predicts_text(self, run: RunWeights) -> bool:
        """Return whether a text file is given and the run was trained on text."""
        return self.test_path is not None and issubclass(trained_data(run.config), TextDataModule)

    def evaluate_text(self, weights: Weights) -> dict[str, Any]:
        """Measure a language model on text files."""
        assert self.test_path is not None  # required by a rule
        hardware = use_hardware(self.hardware)
        files = self.files(self.test_path)
        with rename_keys(KEYS):
            files.files  # noqa: B018 - a missing file is found before a model is loaded
        model = load_language_model(weights, hardware)
        steps = training_preprocessing(weights)
        with autocast(hardware), rename_keys(KEYS):
            result = measure_text(model, weights.tokenizer(), files=files, preprocessing=steps)
        return {
            **origin(weights, result.description),
            "part": self.test_path,
            "metrics": result.metrics,
        }

    def evaluate_run(self, weights: RunWeights) -> dict[str, Any]:
        """Measure a run on a part of its data, or on a file in the same format."""
        baseline = None if self.against is None else responses_of_run(self.against)
        hardware = use_hardware(self.hardware)
        data, task = restore_run(weights, hardware, self.test_path, self.malformed)
        part = choose_part(data, self.part)
        report = {
            **origin(weights, data.describe()),
            "part": self.test_path or part,
            "metrics": measure_part(task, data, part, hardware),
        }
        if isinstance(data, InstructionDataModule):
            task.to(hardware.accelerator)
            with autocast(hardware):
                responses = self.responses(data, task, part, weights)
            report |= rate(
                responses,
                theirs=baseline,
                judge=self.judge,
                file=weights.run.path / "judgements.jsonl",
            )
        if baseline is not None:
            report["against"] = {"against": self.against, **report["against"]}
        return report

    def responses(
        self, data: InstructionDataModule, task: Task, part: str, weights: RunWeights
    ) -> list[Response]:
        """Return the responses to the prompts of a part: those of the training run, or new ones, decoded greedily."""
        run = weights.run
        file = run.path / RESULTS["responses"]
        own = part == "test" and self.test_path is None and weights.checkpoint == "best"
        if own and file.is_file() and is_current(file, weights):
            return read_responses(file)
        rows = response_rows(
            data,
            data.raw[part],
            model=task.model.eval(),
            settings=GenerationSettings(max_tokens=self.max_tokens),
        )
        return write_responses(file, rows) if own else responses_of(rows)


def training_preprocessing(weights: Weights) -> Sequence[Preprocessing]:
    """Return the preprocessing steps of a run's training text; none for imported weights."""
    steps = OmegaConf.select(weights.config, "data.preprocessing")
    if not steps:
        return ()
    check_nodes(weights.config, {"data": Deferred[DataModule]})
    return steps_of(build(steps))


def origin(weights: Weights, data: str) -> dict[str, Any]:
    """Return the run, the data, the date and the versions of a measurement."""
    return {
        "run": str(weights.path),
        "checkpoint": getattr(weights, "checkpoint", None),
        "data": data,
        "date": now(),
        "versions": versions(),
    }


def choose_part(data: DataModule, part: str | None) -> str:
    """Return the given part, otherwise test, otherwise validation.

    Raises:
        ConfigError: the data have no such part.
    """
    if part is None:
        return "validation" if data.dataset("test") is None else "test"
    if data.dataset(part) is None:
        raise ConfigError(
            f"part={part}: these data have no such part ({data.describe()}); leave part out"
        )
    return part


def measure_part(task: Task, data: DataModule, part: str, hardware: Hardware) -> dict[str, float]:
    """Return the task's metrics on a part."""
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
    if not CONSOLE.is_terminal:
        CONSOLE.print(f"measuring the {part} part")
    run = trainer.test if part == "test" else trainer.validate
    run(task, datamodule=data, verbose=False)
    return {name.partition("/")[2]: value for name, value in task.metrics.items()}


def is_current(responses: Path, weights: RunWeights) -> bool:
    """Return whether a run's responses were generated with these weights.

    Then the weights are the run's best or last checkpoint, and the file of the responses is not older.
    """
    used, run = weights.file(), weights.run
    is_newest = used in (run.best, run.last)
    return is_newest and responses.stat().st_mtime >= used.stat().st_mtime
