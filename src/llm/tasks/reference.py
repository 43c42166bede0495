"""What a policy is held against while it learns from preferences: the model it started as."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

from torch import nn

from llm.adapters.base import disabled


class Reference(ABC):
    """The policy as it was before its first step, whatever has been learned since.

    It is no part of the task's modules: never trained, never saved. A resumed run makes it anew from
    the base weights, which are read before a checkpoint is.
    """

    def check(self, policy: nn.Module) -> None:  # noqa: B027 - most take any policy
        """Refuse a policy that this reference cannot be taken of.

        Raises:
            ValueError: it cannot.
        """

    @abstractmethod
    def start(self, policy: nn.Module) -> None:
        """Take note of what the policy is now."""

    @abstractmethod
    @contextmanager
    def of(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The model that the policy was, for as long as the context lasts."""


class FrozenCopy(Reference):
    """A copy of all weights. It serves any policy and doubles the memory that weights take."""

    def __init__(self) -> None:
        self._copy: nn.Module | None = None

    def start(self, policy: nn.Module) -> None:
        """Copy the policy."""
        self._copy = deepcopy(policy).eval().requires_grad_(False)

    @contextmanager
    def of(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The copy, on the policy's device and in its precision."""
        assert self._copy is not None, "start() comes first"
        for own, other in zip(self._copy.parameters(), policy.parameters(), strict=True):
            own.data = own.data.to(other.device, other.dtype)
        for own, other in zip(self._copy.buffers(), policy.buffers(), strict=True):
            own.data = own.data.to(other.device)
        yield self._copy


class AdapterOff(Reference):
    """The policy itself with its adapter off: the base weights are frozen, so nothing is copied."""

    def check(self, policy: nn.Module) -> None:
        """See that there is an adapter.

        Raises:
            ValueError: there is none to turn off.
        """
        with disabled(policy):
            pass

    def start(self, policy: nn.Module) -> None:
        """Nothing is to be noted: the base stays as it is."""

    @contextmanager
    def of(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The base model."""
        with disabled(policy):
            yield policy
