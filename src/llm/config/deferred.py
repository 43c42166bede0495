"""Nodes of a configuration that are checked with the rest of it and built later."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from omegaconf import DictConfig

from llm.config.build import build

T = TypeVar("T")


@dataclass(frozen=True)
class Deferred(Generic[T]):
    """A node of type `T` that is built when the data or the weights that it waits for are known.

    Attributes:
        tree: the composed tree that holds it, so that what is written into the tree meanwhile reaches it.
        key: its key at the root of the tree.
        outline: of a model, or of a task with one: the model with shapes and without weights, as the check built it.
    """

    tree: DictConfig
    key: str
    outline: Any = None

    def build(self, **known: Any) -> T:
        """Build the node, once.

        Args:
            known: arguments that are not in the configuration.

        Raises:
            ConfigError: a constructor refuses a value.
        """
        return build(self.tree[self.key], **known)
