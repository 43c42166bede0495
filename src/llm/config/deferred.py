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
        tree: the composed tree, in which values such as `vocab_size` may be filled in later.
        key: its key at the root of the tree.
        outline: the model that the check built on `meta`, with shapes but no weights, if the node is a model or a task
            with a model.
    """

    tree: DictConfig
    key: str
    outline: Any = None

    def build(self, **known: Any) -> T:
        """Build the node, once.

        Args:
            known: arguments that are not in the configuration.

        Raises:
            ConfigError: a constructor rejects a value.
        """
        return build(self.tree[self.key], **known)
