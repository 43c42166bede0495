"""What every command of the command line has."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from llm.config.composed import Composed
from llm.config.rules import Rule


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """A command, with what its configuration gives it: each field is a key at the root, of the annotated type.

    Args:
        composed: what it was composed of; given by the code.
        trust: packages of the user's that `_target_` may name.
    """

    composed: Composed
    trust: Sequence[str]

    # Over several sections of its tree.
    rules: ClassVar[Sequence[Rule]] = ()

    @abstractmethod
    def run(self) -> Any:
        """Do what the command line asks for."""
