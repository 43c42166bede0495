"""The base class of all commands."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from omegaconf import DictConfig

from llm.config.composed import Composed
from llm.config.rules import Rule


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """A command. Its fields are the keys at the root of its configuration.

    Args:
        composed: the composed configuration; passed by the code.
        trust: packages of the user that `_target_` may name.
    """

    composed: Composed
    trust: Sequence[str]

    # Checks that span several sections of the tree.
    rules: ClassVar[Sequence[Rule]] = ()
    # For a command that trains from weights: copies their architecture into the tree.
    adopt: ClassVar[Callable[[Composed, Any], DictConfig] | None] = None

    @abstractmethod
    def run(self) -> Any:
        """Run the command."""
