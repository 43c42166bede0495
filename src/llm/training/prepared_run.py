"""A run whose data are read and whose task is built."""

from dataclasses import dataclass

from llm.data.base import DataModule
from llm.hardware import Hardware
from llm.tasks.base import Task
from llm.training.training_config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run that is ready to train.

    Attributes:
        config: its configuration.
        hardware: the resolved hardware.
        data: the tokenized data.
        task: the task with its model.
        steps: optimizer steps of the whole run.
        meaning: the fingerprint of its configuration as composed.
        base: the fingerprint of the weights that it begins from.
    """

    config: TrainingConfig
    hardware: Hardware
    data: DataModule
    task: Task
    steps: int
    meaning: str
    base: str | None
