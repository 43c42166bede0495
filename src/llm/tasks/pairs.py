"""Learning from pairs: of two responses to a prompt, which one is better?"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llm.data.preference import PreferenceDataModule
from llm.evaluation.means import Means
from llm.losses import IGNORED, ranking_loss
from llm.tasks.task import Batch, Groups, Task

FIGURES = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")


class Pairs(Task):
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
        super().__init__(model, optimizer, schedule, parameter_groups)
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing={label_smoothing}: give 0, or a share of wrong labels below 0.5"
            )
        self.label_smoothing = label_smoothing
        self.trained, self.evaluated = Means(FIGURES), Means(FIGURES)

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
        chosen, _ = (batch["targets"] != IGNORED).any(-1).chunk(2)
        self.evaluated.update(self.figures_of(batch), chosen)

    def results(self) -> dict[str, float]:
        """The means over all pairs since the last call."""
        results = self.evaluated.compute()
        self.evaluated.reset()
        return results

    def training_figures(self) -> dict[str, float]:
        """The same means, over the training pairs since they were last asked for."""
        figures = self.trained.compute()
        self.trained.reset()
        return {name: value for name, value in figures.items() if name != "loss"}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the figures not yet logged, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["figures"] = self.trained.metric_state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        super().on_load_checkpoint(checkpoint)
        self.trained.restore(checkpoint["figures"])

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
