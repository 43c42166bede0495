"""Nodes of a configuration that are checked with the rest and built later."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from omegaconf import DictConfig

from llm.config.build import build

T = TypeVar("T")


@dataclass(frozen=True)
class Deferred(Generic[T]):
    """A node of type `T` that is built when the data or the weights that it needs are known.

    Attributes:
        tree: the composed tree that contains it. Values that are filled in later, such as `vocab_size`, are used.
        key: its key at the root of the tree.
        outline: for a model or a task with one, the model on `meta` that the check built: shapes, no weights.
    """

    tree: DictConfig
    key: str
    outline: Any = None

    def build(self, **known: Any) -> T:
        """Build the node. Call this once.

        Args:
            known: arguments that are not in the configuration.

        Raises:
            ConfigError: a constructor rejects a value.
        """
        return build(self.tree[self.key], **known)
