"""Direct preference optimisation: a policy learns from pairs, without a reward model (Rafailov et al. 2023)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llm.data.base import DataModule
from llm.losses import implicit_rewards, sequence_log_probabilities
from llm.tasks.base import CAUSAL, Batch, Groups
from llm.tasks.pairs import Pairs
from llm.tasks.reference import Reference


class DPO(Pairs):
    """Make chosen responses likelier, and rejected ones less likely, than they were at the start.

    A response's reward is β times how much likelier it has become (`implicit_rewards`), which makes
    the ranking loss of `Pairs` equation 7 of the paper. So training begins at ln 2, with margin 0.
    Dropout is off: noise in one of two probabilities would drown their ratio.

    Args:
        model: the policy, a language model; as all that follows up to `parameter_groups`, see `Task`.
        optimizer: makes the optimizer.
        schedule: of the learning rate.
        parameter_groups: sorts the parameters.
        reference: what the policy is compared with.
        beta: how much a departure from the reference costs.
        reduction: whether a response's log-probability is the sum over its tokens, as in the paper, or
            their mean, which does not favour a length.
        label_smoothing: the share of preferences taken to be wrong (conservative DPO).

    Raises:
        ValueError: `beta` is not positive, or `label_smoothing` out of range.
    """

    requires = CAUSAL
    command = "chat"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Groups], Optimizer],
        schedule: Callable[[int, int], float],
        parameter_groups: Callable[[nn.Module], Groups],
        reference: Reference,
        beta: float = 0.1,
        reduction: Literal["sum", "mean"] = "sum",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(model, optimizer, schedule, parameter_groups, label_smoothing)
        if beta <= 0:
            raise ValueError(f"beta={beta}: give a number above 0, such as 0.1")
        self.reference = reference
        self.beta = beta
        self.reduction: Literal["sum", "mean"] = reduction

    def check(self, data: DataModule) -> None:
        """Refuse a model that has no such reference.

        Raises:
            ValueError: it has none.
        """
        self.reference.check(self.model)

    def setup(self, stage: str) -> None:
        """Take the reference while the model has its base weights: a checkpoint is restored later."""
        if stage == "fit":
            self.reference.start(self.model)

    def on_train_start(self) -> None:
        """Turn dropout off: Lightning leaves each module in the mode that it finds it in."""
        super().on_train_start()
        self.model.eval()

    def rewards(self, batch: Batch) -> Tensor:
        """The implicit reward of each row, (2B)."""
        policy = self.log_probabilities(self.model, batch)
        with torch.no_grad(), self.reference.of(self.model) as model:
            reference = self.log_probabilities(model, batch)
        return implicit_rewards(policy, reference, self.beta)

    def log_probabilities(self, model: nn.Module, batch: Batch) -> Tensor:
        """How likely each row's response is under a model, (2B), in nats.

        Padding stands on the right, where no real token looks, so it needs no mask.
        """
        return sequence_log_probabilities(model(batch["tokens"]), batch["targets"], self.reduction)
