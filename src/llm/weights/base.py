"""The interface of sources of pretrained weights."""

from abc import ABC, abstractmethod

from omegaconf import DictConfig
from torch import nn

from llm.config.check import check_nodes
from llm.config.deferred import Deferred
from llm.models.size import Size, require_memory
from llm.tokenizers.base import Tokenizer
from llm.weights.folder_settings import FolderSettings


class Weights(ABC):
    """A source of a pretrained language model: its architecture, its tokenizer and its parameters.

    Attributes:
        path: path of the source.
    """

    path: str

    @property
    @abstractmethod
    def config(self) -> DictConfig:
        """Return the nodes `model`, `size` and `tokenizer` as composed by `llm train`, all numbers set.

        Raises:
            ConfigError: the files describe no model, or one that has parts unknown here.
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

        The tables of tokens (`embedding.weight`, `head.weight`) may have more rows than the weights have:
        the new ones, for special tokens that the weights never saw, are drawn like the old (`new_rows`).

        Raises:
            ConfigError: with everything that is missing, left over or wrongly shaped.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short name of the content, which changes when the files do."""

    @property
    def origin(self) -> str:
        """Return a name that identifies these weights and does not change when a run resumes."""
        return self.fingerprint

    @property
    def dtype(self) -> str | None:
        """The precision that the weights lie in and are passed on in; None for that of the model."""
        return None

    @property
    def published(self) -> FolderSettings | None:
        """What the published folder that the weights come from says of their use; None if there was none."""
        return None

    def model(self) -> nn.Module:
        """The model with its weights, in evaluation mode on the CPU.

        Raises:
            ConfigError: as `language_model` does.
        """
        return self.language_model().eval()

    def language_model(self) -> nn.Module:
        """The language model alone, adapters folded in.

        Its configuration is checked before anything is built: the files may be a stranger's.

        Raises:
            ConfigError: the configuration is no model's, or the weights do not fit it.
        """
        config = self.config
        parts = check_nodes(config, {"size": Size, "model": Deferred[nn.Module]})
        require_memory(parts["model"].outline)
        model = parts["model"].build()
        self.load(model)
        return model


def tokenizer_of(weights: Weights) -> Tokenizer:
    """The tokenizer of some weights, for a configuration to name."""
    return weights.tokenizer()
