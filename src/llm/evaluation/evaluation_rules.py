"""Rules of `llm evaluate`."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llm.config.allowlist import locate
from llm.config.errors import UserError
from llm.config.rules import Rule
from llm.data.base import DataModule
from llm.data.corpora.text import TextDataModule
from llm.data.examples.instruction import InstructionDataModule
from llm.evaluation.response_scores import Response, read_responses
from llm.runs import RESULTS, Run
from llm.weights.auto import is_run, open_weights
from llm.weights.run import RunWeights, read_config


def output_is_new(config: Mapping[str, Any]) -> Iterator[str]:
    """Require a new file in an existing folder."""
    output = config.get("output")
    if not isinstance(output, str):
        return
    try:
        exists, has_folder = Path(output).exists(), Path(output).parent.is_dir()
    except OSError:  # not a path: another rule reports it
        return
    if exists:
        yield f"output: {output} exists; choose another name"
    elif not has_folder:
        yield f"output: {Path(output).parent} is not a folder; create it first"


def file_is_a_test_part(config: Mapping[str, Any]) -> Iterator[str]:
    """Refuse `part=validation` for a file in `test_path`."""
    if config.get("test_path") is not None and config.get("part") == "validation":
        yield "part, test_path: a file in test_path is a test part; leave part out"


def other_run_has_responses(config: Mapping[str, Any]) -> Iterator[str]:
    """Require readable responses of the run to compare with."""
    against = config.get("against")
    if not isinstance(against, str):
        return
    try:
        responses_of_run(against)
    except UserError as error:
        yield f"against: {error}"


def weights_fit_evaluation(config: Mapping[str, Any]) -> Iterator[str]:
    """Require a text file for weights without data, and data with responses for a judge or a comparison."""
    node, file = config.get("weights"), config.get("test_path")
    if not isinstance(node, Mapping):
        return
    try:
        saved = run_config(node)
        data = None if saved is None else trained_data(saved)
    except (UserError, OSError, TypeError):  # reported when the weights are built
        return
    if data is None and file is None:
        yield (
            f"test_path: {node.get('path')} has no data of its own; pass a text file or a folder of text files"
        )
    if data is None or (file is not None and issubclass(data, TextDataModule)):
        problem = "test_path: a text has no parts and no responses"
        keys = ("part", "judge", "against")
    elif issubclass(data, InstructionDataModule):
        return
    else:
        problem = f"weights.path: {node['path']} was not trained on instructions"
        keys = ("judge", "against")
    unused = [key for key in keys if config.get(key) is not None]
    if unused:
        yield f"{problem}; leave out {', '.join(unused)}"


RULES: tuple[Rule, ...] = (
    output_is_new,
    file_is_a_test_part,
    other_run_has_responses,
    weights_fit_evaluation,
)


def run_config(node: Mapping[str, Any]) -> DictConfig | None:
    """Return the configuration of the run in a node `weights`; None if the weights are not a run's."""
    trust = node.get("trust") or ()
    made = locate(str(node.get("_target_")), trust)
    if made is open_weights and is_run(node["path"]):
        made = RunWeights
    if not (inspect.isclass(made) and issubclass(made, RunWeights)):
        return None
    return read_config(Run(Path(node["path"])).config, trust)


def trained_data(config: DictConfig) -> type[DataModule]:
    """Return the class of a run's data module; if a function makes the data, the one that the run's task needs."""
    made: Any = locate(str(OmegaConf.select(config, "data._target_")), config.trust)
    if inspect.isclass(made) and issubclass(made, DataModule):
        return made
    task: Any = locate(config.task._target_, config.trust)
    return task.data_module


def responses_of_run(path: str) -> list[Response]:
    """Return the responses in the directory of a run."""
    return read_responses(Run(Path(path)).path / RESULTS["responses"])
