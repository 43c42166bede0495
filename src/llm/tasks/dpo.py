"""Direct preference optimization: a policy learns from pairs, without a reward model (Rafailov et al. 2023)."""

from typing import Any, Literal

from torch import Tensor, nn

from llm.losses import implicit_rewards, sequence_log_probabilities
from llm.tasks.base import CAUSAL, Batch
from llm.tasks.pairs import Pairs
from llm.tasks.reference import Reference, ReferenceTask


class DPO(Pairs, ReferenceTask):
    """Make chosen responses more likely, and rejected ones less likely, than at the start.

    The reward of a response is β times the increase of its log-probability (`implicit_rewards`). With it,
    the ranking loss of `Pairs` is equation 7 of the paper. Training begins at a margin of 0, so at a loss of
    ln 2.

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

    def rewards(self, batch: Batch) -> Tensor:
        """Return the implicit reward of each row, (2B)."""
        policy, reference = self.policy_and_reference(batch)
        return implicit_rewards(policy, reference, beta=self.beta)

    def log_probabilities(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the log-probability of each row's response under a model, (2B), in nats."""
        # Padding is on the right, where no real token attends to it, so it needs no mask.
        return sequence_log_probabilities(
            model(batch["tokens"]), batch["targets"], reduction=self.reduction
        )
