"""A run whose data were read and whose task was built: all that training needs."""

from dataclasses import dataclass

from llm.data.base import DataModule
from llm.hardware import Hardware
from llm.tasks.base import Task
from llm.training.training_config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run that is ready to train.

    Attributes:
        config: what it is trained from.
        hardware: what it is trained on, resolved.
        data: read and tokenized.
        task: with its model.
        steps: optimizer steps of the whole run.
    """

    config: TrainingConfig
    hardware: Hardware
    data: DataModule
    task: Task
    steps: int
