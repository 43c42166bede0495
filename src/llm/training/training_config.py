"""The configuration of a run, for `llm train` and for commands that forecast a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer

from llm.adapters.base import Adapter
from llm.config.base import Command
from llm.config.composed import Composed
from llm.config.deferred import Deferred
from llm.config.rules import Rule
from llm.hardware import Hardware
from llm.models.size import Size
from llm.rewards.base import RewardFunction
from llm.training.adoption import adopt_architecture
from llm.training.config_rules import RULES
from llm.training.trainer import TrainerSettings
from llm.weights.base import Weights

# What the points of a sweep can be matched in.
Measure = Literal["parameters", "active_parameters", "flops", "tokens"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Command):
    """The configuration of a run.

    Model, tokenizer, data and task are built later, because reading the data fills in the vocabulary size. The task
    refers to the optimizer and the schedule.
    """

    model: Deferred[nn.Module]
    size: Size
    tokenizer: Deferred[Any]
    data: Deferred[LightningDataModule]
    task: Deferred[LightningModule]
    weights: Weights | None
    adapter: Adapter | None
    reward: RewardFunction | None = None
    optimizer: Callable[[Any], Optimizer]
    schedule: Callable[[int, int], float]
    hardware: Hardware
    trainer: TrainerSettings
    logger: Mapping[str, Callable[[str, str], Logger] | None]
    callbacks: Mapping[str, Callback | None]
    seed: int
    name: str | None
    output_dir: str
    rerun: bool
    resume: Literal["exact", "allow_changes"]
    dry_run: bool
    match: Measure | Sequence[Measure] | None

    rules: ClassVar[Sequence[Rule]] = RULES
    adopt: ClassVar[Callable[[Composed, Any], DictConfig] | None] = adopt_architecture

    @property
    def tree(self) -> DictConfig:
        """The configuration that the deferred nodes are built from, with the architecture of the weights."""
        return self.task.tree
