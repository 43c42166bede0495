"""Learning from pairs: of two responses to a prompt, which one is better?"""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llm.data.examples.preference import PreferenceDataModule
from llm.losses import ranking_loss
from llm.nn.ignore_index import IGNORE_INDEX
from llm.tasks.averaged_task import MeansTask
from llm.tasks.base import Batch, Groups

FIGURES = ("accuracy", "margin", "chosen_reward", "rejected_reward")


class Pairs(MeansTask):
    """Give the chosen response of a pair a higher reward than the rejected one.

    What a reward is, a subclass says; the loss is Bradley and Terry's on the difference (`ranking_loss`).
    Logged in training and validation: the mean rewards, their difference (`margin`), and the share of
    pairs in which it is positive (`accuracy`).

    Args:
        model: as all that follows up to `parameter_groups`, see `Task`.
        optimizer: makes the optimizer.
        schedule: of the learning rate.
        parameter_groups: sorts the parameters.
        label_smoothing: the share of preferences that are taken to be the wrong way round.

    Raises:
        ValueError: `label_smoothing` is not in [0, 0.5).
    """

    data_module = PreferenceDataModule

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Groups], Optimizer],
        schedule: Callable[[int, int], float],
        parameter_groups: Callable[[nn.Module], Groups],
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(model, optimizer, schedule, parameter_groups, FIGURES, ("loss", *FIGURES))
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing={label_smoothing}: give 0, or a share of wrong labels below 0.5"
            )
        self.label_smoothing = label_smoothing

    @abstractmethod
    def rewards(self, batch: Batch) -> Tensor:
        """A reward for each row of a batch, (2B): those of the chosen responses, then the rejected."""

    def step(self, batch: Batch) -> Tensor:
        """Mean ranking loss of the pairs, in nats."""
        figures = self.figures_of(batch)
        self.trained.update(figures)
        return figures["loss"].mean()

    def compile_step(self) -> None:
        """Compile what a reward takes; the bookkeeping is not worth it."""
        self.rewards = torch.compile(self.rewards)

    def evaluate(self, batch: Batch) -> None:
        """Add a batch; pairs in which nothing is asked fill the shares of devices and do not count."""
        chosen, _ = (batch["targets"] != IGNORE_INDEX).any(-1).chunk(2)
        self.evaluated.update(self.figures_of(batch), chosen)

    def figures_of(self, batch: Batch) -> dict[str, Tensor]:
        """For each pair its loss, with gradient, and what is logged, (B) each."""
        chosen, rejected = self.rewards(batch).float().chunk(2)
        margin = chosen - rejected
        return {
            "loss": ranking_loss(chosen, rejected, self.label_smoothing),
            "accuracy": (margin > 0).float(),
            "margin": margin,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
        }
