"""Weights in a GGUF file, the format of llama.cpp."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from llm.checkpoints.lazy_tensor import LazyTensor
from llm.config.build import config_errors_at
from llm.tokenizers.base import Tokenizer
from llm.weights.families import FAMILIES
from llm.weights.folder_settings import FolderSettings
from llm.weights.gguf_families import settings_in
from llm.weights.gguf_file import DTYPES, GGUFFile, read_gguf
from llm.weights.gguf_tensors import published_tensors
from llm.weights.gguf_tokenizer import read_gguf_tokenizer, read_token_settings
from llm.weights.huggingface import Architecture, Folder, HuggingFaceWeights, Settings
from llm.weights.key_map import KeyMap


@dataclass(frozen=True)
class GGUFFolder(Folder):
    """A GGUF file as a published folder: with the same settings, names and tensors."""

    @cached_property
    def file(self) -> GGUFFile:
        """The header of the file."""
        return read_gguf(self.path)

    @cached_property
    def settings(self) -> Settings:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The config.json that the values describe.

        Raises:
            ConfigError: the architecture is unknown, or a value has a wrong type.
        """
        return settings_in(self.file)

    @property
    def files(self) -> list[Path]:
        """The file."""
        return [self.path]

    @cached_property
    def published(self) -> FolderSettings | None:
        """The special tokens, the chat template and the dtype.

        Raises:
            ConfigError: a value has a wrong type.
        """
        with config_errors_at("weights.path"):
            return read_token_settings(self.file.values)

    def tensors(self) -> dict[str, LazyTensor]:
        """Return the parameters by Hugging Face's names.

        Raises:
            ConfigError: the file does not have the tensors that its values describe.
        """
        return published_tensors(self.file, self.settings)

    def tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer; None if there is none.

        Raises:
            ConfigError: it is of an unknown kind, or is damaged.
        """
        return read_gguf_tokenizer(self.file.values, self.published or FolderSettings())


@dataclass(frozen=True)
class GGUFWeights(HuggingFaceWeights):
    """A GGUF file of a family that llama.cpp and this project have.

    Quantized tensors are read in float32, one at a time.

    Args:
        path: the file.
        context_length: a context length shorter than the model's, in tokens.

    Raises:
        ValueError: there is no such file, or the context length is not positive.
    """

    def __post_init__(self) -> None:
        if not Path(self.path).is_file():
            raise ValueError(f"path={self.path} is not a file; give a GGUF file")
        if self.context_length is not None and self.context_length < 1:
            raise ValueError(f"context_length={self.context_length}: give 1 or more, or null")

    @cached_property
    def folder(self) -> GGUFFolder:
        """The file."""
        return GGUFFolder(Path(self.path))

    @cached_property
    def settings(self) -> Settings:
        """The config.json that the values describe.

        Raises:
            ConfigError: the architecture is unknown, or a value has a wrong type.
        """
        found = self.folder.settings
        return {**FAMILIES[found["model_type"]].defaults, **found}

    @property
    def dtype(self) -> str | None:
        """The dtype of the matrices; float32 for quantized ones, whose values are read in it."""
        kinds = {each.kind for each in self.folder.file.tensors.values() if len(each.shape) > 1}
        stored = [DTYPES[kind] for kind in kinds if kind in DTYPES]
        is_exact = len(stored) == len(kinds) == 1
        return str(stored[0]).removeprefix("torch.") if is_exact else "float32"

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return the architecture of the family."""
        return FAMILIES[settings["model_type"]].architecture(settings)

    @classmethod
    def key_map(cls, settings: Settings) -> KeyMap:
        """Return the rules of the family."""
        return FAMILIES[settings["model_type"]].key_map(settings)

    @classmethod
    def describe(cls, model: nn.Module) -> Settings:
        """Raise an error: a file has the family of its model.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("the family of a GGUF file is that of its model")
