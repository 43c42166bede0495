"""Direct preference optimization: a policy learns from pairs, without a reward model (Rafailov et al. 2023)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from llm.data.base import DataModule
from llm.losses import implicit_rewards, sequence_log_probabilities
from llm.tasks.base import CAUSAL, Batch
from llm.tasks.pairs import Pairs
from llm.tasks.reference import Reference


class DPO(Pairs):
    """Make chosen responses more likely, and rejected ones less likely, than at the start.

    The reward of a response is β times the increase of its log-probability (`implicit_rewards`), with
    which the ranking loss of `Pairs` is equation 7 of the paper. Training begins at a loss of ln 2, with
    margin 0. Dropout is off: it would add noise to one of the two log-probabilities.

    Args:
        model: the policy, a language model.
        reference: the model that the policy is compared with.
        beta: cost of diverging from the reference.
        reduction: whether a response's log-probability is the sum over its tokens, as in the paper, or
            their mean, which does not favour a length.
        shared: the other arguments of `Pairs`; label smoothing makes it conservative DPO.

    Raises:
        ValueError: `beta` is not positive, or `label_smoothing` is out of range.
    """

    requires = CAUSAL
    command = "chat"

    def __init__(
        self,
        model: nn.Module,
        *,
        reference: Reference,
        beta: float = 0.1,
        reduction: Literal["sum", "mean"] = "sum",
        **shared: Any,
    ) -> None:
        super().__init__(model, **shared)
        if beta <= 0:
            raise ValueError(f"beta={beta}: give a number above 0, such as 0.1")
        self.reference = reference
        self.beta = beta
        self.reduction: Literal["sum", "mean"] = reduction

    def check(self, data: DataModule) -> None:
        """Check that the reference can be taken from this model.

        Raises:
            ValueError: it cannot.
        """
        self.reference.check(self.model)

    def setup(self, stage: str) -> None:
        """Take the reference while the model has its base weights, before a checkpoint is restored."""
        if stage == "fit":
            self.reference.start(self.model)

    def on_train_start(self) -> None:
        """Turn dropout off."""
        super().on_train_start()
        self.model.eval()

    def rewards(self, batch: Batch) -> Tensor:
        """Return the implicit reward of each row, (2B)."""
        policy = self.log_probabilities(self.model, batch)
        # Without a gradient the activations of the reference are not stored.
        with torch.no_grad(), self.reference.of(self.model) as model:
            reference = self.log_probabilities(model, batch)
        return implicit_rewards(policy, reference, beta=self.beta)

    def log_probabilities(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the log-probability of each row's response under a model, (2B), in nats.

        Padding is on the right, where no real token attends to it, so it needs no mask.
        """
        return sequence_log_probabilities(
            model(batch["tokens"]), batch["targets"], reduction=self.reduction
        )
