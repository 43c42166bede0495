"""The interface of pretrained weights."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig
from torch import nn

from llm.config.check import check_nodes
from llm.config.deferred import Deferred
from llm.models.size import Size, require_memory
from llm.tokenizers.base import Tokenizer
from llm.weights.folder_settings import FolderSettings


class Weights(ABC):
    """A pretrained language model: architecture, tokenizer and parameters.

    Attributes:
        path: path of the source.
    """

    path: str

    @property
    @abstractmethod
    def config(self) -> DictConfig:
        """Return the nodes `model`, `size` and `tokenizer` as composed by `llm train`, with all numbers set.

        Raises:
            ConfigError: the files do not describe a model, or describe one with an unsupported part.
        """

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer that the model was trained with.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """

    @abstractmethod
    def load(self, model: nn.Module) -> None:
        """Fill a language model in place, one tensor at a time.

        The model's `embedding.weight` and `head.weight` may have more rows than the stored ones, for new special
        tokens. `new_rows` initializes these rows.

        Raises:
            ConfigError: lists all tensors that are missing, unexpected or of a wrong shape.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short digest of the files."""

    @property
    def origin(self) -> str:
        """Return a name that identifies these weights and does not change when a run resumes."""
        return self.fingerprint

    @property
    def dtype(self) -> str | None:
        """The dtype in which the weights are exported; None for that of the model."""
        return None

    @property
    def published(self) -> FolderSettings | None:
        """The settings of the published folder that the weights come from; None if there is none."""
        return None

    @property
    def record(self) -> Mapping[str, Any]:
        """The record of the run that trained these weights; empty for a published folder."""
        return {}

    def model(self) -> nn.Module:
        """Return the model with its weights, in evaluation mode on the CPU.

        Raises:
            ConfigError: see `language_model`.
        """
        return self.language_model().eval()

    def merged(self) -> nn.Module:
        """Return the model with an adapter, if it has one, merged into its weights.

        Raises:
            ConfigError: see `language_model`.
        """
        return self.model()

    def language_model(self) -> nn.Module:
        """Return the language model alone, with adapters merged.

        Checks the configuration before building anything, because the files may be untrusted.

        Raises:
            ConfigError: the configuration is not that of a model, or the weights do not fit it.
        """
        config = self.config
        parts = check_nodes(config, {"size": Size, "model": Deferred[nn.Module]})
        require_memory(parts["model"].outline)
        model = parts["model"].build()
        self.load(model)
        return model


def tokenizer_of(weights: Weights) -> Tokenizer:
    """Return the tokenizer of weights; configurations name this function as a `_target_`."""
    return weights.tokenizer()
