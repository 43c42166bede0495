"""Learning from pairs of responses, of which one is preferred."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from llm.data.examples.preference import PreferenceDataModule
from llm.losses import ranking_loss
from llm.nn.ignore_index import IGNORE_INDEX
from llm.tasks.averaged_task import AveragedTask
from llm.tasks.base import Batch


class Pairs(AveragedTask):
    """Give the chosen response of a pair a higher reward than the rejected one.

    A subclass defines the reward; the loss is that of the Bradley-Terry model (`ranking_loss`). Training
    and validation log the mean rewards, their difference (`margin`) and the share of pairs in which it is
    positive (`accuracy`).

    Args:
        model: see `Task`.
        label_smoothing: assumed share of wrong preferences.
        shared: the other arguments of `Task`.

    Raises:
        ValueError: `label_smoothing` is not in [0, 0.5).
    """

    data_module = PreferenceDataModule
    metric_names = ("accuracy", "margin", "chosen_reward", "rejected_reward")

    def __init__(self, model: nn.Module, *, label_smoothing: float = 0.0, **shared: Any) -> None:
        super().__init__(model, **shared)
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing={label_smoothing}: give 0, or a share of wrong labels below 0.5"
            )
        self.label_smoothing = label_smoothing

    @abstractmethod
    def rewards(self, batch: Batch) -> Tensor:
        """Return a reward for each row of a batch, (2B): the chosen responses, then the rejected ones."""

    def step(self, batch: Batch) -> Tensor:
        """Return the mean ranking loss of the pairs, in nats."""
        metrics = self.measure(batch)
        self.trained.update(metrics)
        return metrics["loss"].mean()

    def compile_step(self) -> None:
        """Compile the rewards only; the metrics gain nothing."""
        self.rewards = torch.compile(self.rewards)

    def evaluate(self, batch: Batch) -> None:
        """Add a batch; pairs without targets, which pad the batches of some ranks, are ignored."""
        chosen, _ = (batch["targets"] != IGNORE_INDEX).any(-1).chunk(2)
        self.evaluated.update(self.measure(batch), chosen)

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of each pair, with gradient, and its metrics, (B) each."""
        # One forward pass for both halves: (2B) -> (B) and (B).
        chosen, rejected = self.rewards(batch).float().chunk(2)
        margin = chosen - rejected
        return {
            "loss": ranking_loss(chosen, rejected, label_smoothing=self.label_smoothing),
            "accuracy": (margin > 0).float(),
            "margin": margin,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
        }
