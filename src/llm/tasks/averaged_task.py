"""A task whose metrics are means over examples, in training and in an evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from llm import distributed
from llm.evaluation.running_mean import Means
from llm.tasks.base import Task


class AveragedTask(Task):
    """A task whose `step` adds the metrics of each example to `trained`, and whose `evaluate` adds them to `evaluated`.

    The arguments are those of `Task`.

    Attributes:
        metric_names: names of the metrics; an evaluation also has `loss`, which training logs anyway.
        training_only: names of metrics that an evaluation does not have.
    """

    metric_names: ClassVar[tuple[str, ...]]
    training_only: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: nn.Module, **shared: Any) -> None:
        super().__init__(model, **shared)
        self.trained = Means((*self.metric_names, *self.training_only))
        self.evaluated = Means(("loss", *self.metric_names))

    def training_metrics(self) -> dict[str, float]:
        """Return the means over the training examples since the last call."""
        return self.trained.take()

    def results(self) -> dict[str, float]:
        """Return the means over the examples evaluated since the last call."""
        return self.evaluated.take()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the metrics not yet logged."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["figures"] = distributed.gather(self.trained.state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the metrics not yet logged."""
        super().on_load_checkpoint(checkpoint)
        state = distributed.state_of_this_rank(checkpoint["figures"], merge=add_states)
        if state is not None:
            self.trained.restore(state)


def add_states(states: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Return the sums over several ranks as the state of one."""
    return {name: torch.stack([state[name] for state in states]).sum(0) for name in states[0]}
