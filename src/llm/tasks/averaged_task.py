"""A task whose metrics are means over examples, in training and in an evaluation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llm import distributed
from llm.evaluation.running_mean import Means
from llm.tasks.base import Groups, Task


class MeansTask(Task):
    """A task that sums metrics, one value per example, and reports their means.

    Its `step` adds to `trained` and its `evaluate` to `evaluated`.

    Args:
        model: see `Task`, as for the next three.
        optimizer: makes the optimizer.
        schedule: learning rate schedule.
        parameter_groups: sorts the parameters.
        trained: names of the training metrics; `loss` is logged anyway.
        evaluated: names of the evaluation metrics, `loss` among them.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Callable[[Groups], Optimizer],
        schedule: Callable[[int, int], float],
        parameter_groups: Callable[[nn.Module], Groups],
        trained: Sequence[str],
        evaluated: Sequence[str],
    ) -> None:
        super().__init__(
            model, optimizer=optimizer, schedule=schedule, parameter_groups=parameter_groups
        )
        self.trained, self.evaluated = Means(trained), Means(evaluated)

    def training_figures(self) -> dict[str, float]:
        """Return the means over the training examples since the last call."""
        return self.trained.take()

    def results(self) -> dict[str, float]:
        """Return the means over all examples that were evaluated since the last call."""
        return self.evaluated.take()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the metrics not yet logged, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["figures"] = distributed.gather(self.trained.state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the metrics not yet logged."""
        super().on_load_checkpoint(checkpoint)
        figures = distributed.state_of_this_rank(checkpoint["figures"], merge=added)
        if figures is not None:
            self.trained.restore(figures)


def added(states: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Return the sums over several ranks as the state of one."""
    return {name: torch.stack([state[name] for state in states]).sum(0) for name in states[0]}
