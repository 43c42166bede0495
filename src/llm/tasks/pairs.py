"""Learning from pairs of responses, of which one is preferred."""

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

    A subclass defines the reward; the loss is that of the Bradley-Terry model (`ranking_loss`). Training
    and validation log the mean rewards, their difference (`margin`) and the share of pairs in which it is
    positive (`accuracy`).

    Args:
        model: see `Task`, as for the next three.
        optimizer: makes the optimizer.
        schedule: learning rate schedule.
        parameter_groups: sorts the parameters.
        label_smoothing: assumed share of wrong preferences.

    Raises:
        ValueError: `label_smoothing` is not in [0, 0.5).
    """

    data_module = PreferenceDataModule

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Callable[[Groups], Optimizer],
        schedule: Callable[[int, int], float],
        parameter_groups: Callable[[nn.Module], Groups],
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            model,
            optimizer=optimizer,
            schedule=schedule,
            parameter_groups=parameter_groups,
            trained=FIGURES,
            evaluated=("loss", *FIGURES),
        )
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
        figures = self.figures_of(batch)
        self.trained.update(figures)
        return figures["loss"].mean()

    def compile_step(self) -> None:
        """Compile the rewards; the bookkeeping around them gains nothing."""
        self.rewards = torch.compile(self.rewards)

    def evaluate(self, batch: Batch) -> None:
        """Add a batch; pairs without targets, which pad the batches of some ranks, do not count."""
        chosen, _ = (batch["targets"] != IGNORE_INDEX).any(-1).chunk(2)
        self.evaluated.update(self.figures_of(batch), chosen)

    def figures_of(self, batch: Batch) -> dict[str, Tensor]:
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
