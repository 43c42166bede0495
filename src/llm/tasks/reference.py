"""The reference model of DPO and GRPO, and the tasks that compare their model with it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from llm.adapters.base import disabled
from llm.data.base import DataModule
from llm.tasks.base import Batch, Task


class Reference(ABC):
    """The policy before its first step.

    It is neither trained nor saved. A resumed run takes it again from the base weights, which are read
    before the checkpoint.
    """

    def check(self, policy: nn.Module) -> None:  # noqa: B027 - most take any policy
        """Check that this reference can be taken from a policy.

        Raises:
            ValueError: it cannot.
        """

    @abstractmethod
    def start(self, policy: nn.Module) -> None:
        """Take the policy as it is now."""

    @abstractmethod
    @contextmanager
    def of(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Return a context that yields the reference model."""


class FrozenCopy(Reference):
    """A copy of all weights, for any policy; it doubles the memory of the weights."""

    def __init__(self) -> None:
        self._copy: nn.Module | None = None

    def start(self, policy: nn.Module) -> None:
        """Copy the policy."""
        self._copy = deepcopy(policy).eval().requires_grad_(requires_grad=False)

    @contextmanager
    def of(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Return the copy, on the device of the policy and in its precision."""
        assert self._copy is not None, "start() comes first"
        # The copy is not a submodule, so Lightning does not move it with the task.
        for own, other in zip(self._copy.parameters(), policy.parameters(), strict=True):
            own.data = own.data.to(other.device, other.dtype)
        for own, other in zip(self._copy.buffers(), policy.buffers(), strict=True):
            own.data = own.data.to(other.device)
        yield self._copy


class AdapterOff(Reference):
    """The policy itself with its adapter off: the base weights are frozen, so no copy is needed."""

    def check(self, policy: nn.Module) -> None:
        """Check that there is an adapter.

        Raises:
            ValueError: there is none.
        """
        with disabled(policy):
            pass

    def start(self, policy: nn.Module) -> None:
        """Do nothing: the base weights never change."""

    @contextmanager
    def of(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Return the base model."""
        with disabled(policy):
            yield policy


class ReferenceTask(Task):
    """A task that compares its model, the policy, with a reference.

    Dropout is off: it would add noise to the log-probabilities of only one of the two.

    Attributes:
        reference: the model that the policy is compared with.
    """

    reference: Reference

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
        self.model.eval()  # Lightning does not change the mode of a module

    @abstractmethod
    def log_probabilities(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the log-probabilities of the targets of a batch under a model, in nats."""

    def policy_and_reference(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities under the policy, with gradient, and under the reference."""
        policy = self.log_probabilities(self.model, batch)
        # Without a gradient the activations of the reference are not stored.
        with torch.no_grad(), self.reference.of(self.model) as model:
            reference = self.log_probabilities(model, batch)
        return policy, reference
