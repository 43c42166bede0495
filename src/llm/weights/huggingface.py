"""Published models as folders: what Hugging Face's library writes, here or on its hub."""

import copy
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from llm import network
from llm.checkpoints.lazy_tensor import LazyTensor, in_safetensors, in_torch_file
from llm.config.build import config_errors_at
from llm.config.errors import ConfigError
from llm.config.loader import CONF, open_loader
from llm.files import read_object
from llm.tokenizers.base import Tokenizer
from llm.weights.base import Weights
from llm.weights.folder_settings import SETTINGS_FILES, FolderSettings, read_settings
from llm.weights.key_map import KeyMap
from llm.weights.tokenizer_files import read_tokenizer

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
DESCRIPTION = [
    "config.json",
    "tokenizer*.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
]
# How families call the table of tokens, whose rows config.json counts.
TOKEN_TABLES = ("wte.weight", "embed_tokens.weight", "word_embeddings.weight")

Settings = dict[str, Any]


class Folder(ABC):
    """A folder with a published model."""

    @property
    @abstractmethod
    def settings(self) -> Settings:
        """The architecture, in the words of Hugging Face's config.json."""

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """All files that decide what the model is."""

    @property
    def published(self) -> FolderSettings | None:
        """What the folder says of the use of its model, if anything."""
        return None

    @abstractmethod
    def tensors(self) -> dict[str, LazyTensor]:
        """The parameters by Hugging Face's names."""

    @abstractmethod
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None where the folder has none."""


@dataclass(frozen=True)
class HuggingFaceFolder(Folder):
    """config.json, safetensors in one file or several, and the files of a tokenizer.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def settings(self) -> Settings:
        """What config.json says.

        Raises:
            ConfigError: there is none, or it is no JSON object.
        """
        with config_errors_at("weights.path"):
            return read_object(self.path / "config.json")

    @property
    def files(self) -> list[Path]:
        """The tensors' files and those that describe them."""
        described = {file for pattern in DESCRIPTION for file in self.path.glob(pattern)}
        return sorted(described | {*self._tensor_files()})

    @cached_property
    def published(self) -> FolderSettings:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What its settings' files say.

        Raises:
            ConfigError: one cannot be read.
        """
        with config_errors_at("weights.path"):
            return read_settings(self.path)

    def tensors(self) -> dict[str, LazyTensor]:
        """The parameters, of every shard.

        Raises:
            ConfigError: a file is missing or damaged.
        """
        tensors: dict[str, LazyTensor] = {}
        for file in self._tensor_files():
            tensors |= (
                in_safetensors(file) if file.suffix == ".safetensors" else in_torch_file(file)
            )
        return tensors

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of tokenizer.json, or of vocab.json and merges.txt.

        Raises:
            ConfigError: its files cannot be read.
        """
        try:
            return read_tokenizer(self.path, self.published)
        except ValueError as error:
            raise ConfigError(f"weights.path: {error}") from error

    def _tensor_files(self) -> list[Path]:
        for name in (SAFETENSORS, TORCH):
            if (self.path / name).is_file():
                return [self.path / name]
            if (index := self.path / f"{name}.index.json").is_file():
                return _shards(index)
        raise ConfigError(
            f"weights.path: {self.path} holds no weights: neither {SAFETENSORS} nor {TORCH}, whole or in shards"
        )


@dataclass(frozen=True)
class HuggingFaceWeights(Weights):
    """The weights of a published family of models.

    Args:
        path: a folder, or a name on Hugging Face's hub such as `openai-community/gpt2`, which is fetched
            on first use.
        context_length: tokens in a training example, where that is to be fewer than the model was made for.

    Attributes:
        model_type: what config.json calls the family.
        expected: values of config.json that must be these where they stand there: others ask for parts
            that are not built here.

    Raises:
        ValueError: the path is neither.
    """

    path: str
    context_length: int | None = None

    model_type: ClassVar[str]
    expected: ClassVar[Mapping[str, Any]]

    def __post_init__(self) -> None:
        if not Path(self.path).is_dir() and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", self.path):
            raise ValueError(
                f"path={self.path} is neither a folder nor a name on Hugging Face's hub"
            )
        if self.context_length is not None and self.context_length < 1:
            raise ValueError(f"context_length={self.context_length}: give 1 or more, or null")

    @abstractmethod
    def architecture(self, settings: Settings) -> tuple[list[str], Settings]:
        """How our parts make this model.

        Returns:
            Options of groups (`model/feed_forward=gelu`), and values by full key.
        """

    @abstractmethod
    def key_map(self, settings: Settings) -> KeyMap:
        """Whose tensors make which of ours."""

    @cached_property
    def folder(self) -> Folder:
        """The folder, fetched if it is not there."""
        path = Path(self.path)
        return HuggingFaceFolder(path if path.is_dir() else download(self.path))

    @cached_property
    def settings(self) -> Settings:
        """The architecture in the words of config.json, checked.

        Raises:
            ConfigError: it is of another family, or has parts that are not built here.
        """
        settings = self.folder.settings
        family = settings.get("model_type")
        if family != self.model_type:
            raise ConfigError(
                f"weights.path: {self.path} is a model of type {family}, not {self.model_type}"
            )
        for key, value in self.expected.items():
            if settings.get(key, value) != value:
                raise unsupported(key, settings[key], choices=[value])
        return settings

    @property
    def config(self) -> DictConfig:
        """The nodes `model`, `size` and `tokenizer`, of a chat model `data.template` too; a copy."""
        return copy.deepcopy(self._config)

    @cached_property
    def _config(self) -> DictConfig:
        """Composed from conf/ with the numbers of config.json."""
        options, values = self.architecture(self.settings)
        if self.context_length is not None:
            length = values["size.context_length"]
            if self.context_length > length:
                raise ConfigError(
                    f"weights.context_length: {self.context_length} is more than the {length} tokens that "
                    f"{self.path} was made for; give {length} or less"
                )
            values["size.context_length"] = self.context_length
        cls = type(self)
        if self.published is not None and (template := self.published.template) is not None:
            values["data.template"] = template
        weights = {"_target_": f"{cls.__module__}.{cls.__qualname__}", "path": self.path}
        tokenizer = {"_target_": "llm.weights.base.tokenizer_of", "weights": weights}
        return compose_architecture(options, {**values, "tokenizer": tokenizer})

    @property
    def published(self) -> FolderSettings | None:
        """What the folder says of the use of its model."""
        return self.folder.published

    @property
    def dtype(self) -> str | None:
        """What config.json says, or the precision of the first tensor."""
        if self.published is not None and self.published.dtype is not None:
            return self.published.dtype
        first = next(iter(self.folder.tensors().values()), None)
        return None if first is None else str(first.read().dtype).removeprefix("torch.")

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the folder.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """
        tokenizer = self.folder.tokenizer() or self.default_tokenizer()
        if tokenizer is None:
            raise ConfigError(
                f"weights.path: {self.path} has no tokenizer: put the model's tokenizer.json there"
            )
        return tokenizer

    def default_tokenizer(self) -> Tokenizer | None:
        """The tokenizer of a folder without one, where the family has but one."""
        return None

    def load(self, model: nn.Module) -> None:
        """Fill a model of ours with the folder's tensors.

        Raises:
            ConfigError: with everything that is missing, left over or wrongly shaped.
        """
        tensors = self.folder.tensors()
        for name, stored in tensors.items():
            # A model with more rows would take the table, and call its last tokens new.
            if name.endswith(TOKEN_TABLES) and stored.shape[0] != self.settings["vocab_size"]:
                raise ConfigError(
                    f"weights.path: {stored.name} has {stored.shape[0]} rows, config.json says "
                    f"vocab_size={self.settings['vocab_size']}"
                )
        self.key_map(self.settings).load(tensors, model)

    @property
    def fingerprint(self) -> str:
        """Sixteen characters of the SHA-256 of all the files."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for file in self.folder.files:
            with file.open("rb") as opened:
                digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()[:16]


def compose_architecture(options: Iterable[str], values: Mapping[str, Any]) -> DictConfig:
    """A tree of the packaged configuration, with values set by full key."""
    loader = open_loader(CONF)
    config = loader.load_configuration(None, list(options), run_mode=RunMode.RUN)
    with open_dict(config):
        del config["hydra"]
    for key, value in values.items():
        OmegaConf.update(config, key, value, force_add=True)
    return config


def download(name: str) -> Path:
    """The folder of a model on Hugging Face's hub, in the hub's cache; fetched on first use.

    Raises:
        ConfigError: it is not in the cache and cannot be fetched.
    """
    from huggingface_hub import constants, snapshot_download

    def fetch(*patterns: str) -> Path:
        snapshot = partial(
            snapshot_download,
            name,
            allow_patterns=[*DESCRIPTION, *SETTINGS_FILES, *patterns],
            local_files_only=network.is_offline(),
        )
        caches = (Path(constants.HF_HUB_CACHE), Path(constants.HF_XET_CACHE))
        return Path(network.run_download(snapshot, *caches))

    try:
        folder = fetch("model*.safetensors", f"{SAFETENSORS}.index.json")
        if not any(folder.glob("*.safetensors")):
            folder = fetch("pytorch_model*.bin", f"{TORCH}.index.json")
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if refusal := network.refusal(f"{name} on Hugging Face's hub"):
            raise ConfigError(f"{refusal}, and it is not in the hub's cache here") from error
        raise ConfigError(
            f"weights.path: {name} is not a folder here, and cannot be fetched from Hugging Face's hub ({reason}): "
            "correct the name, or fetch it where there is a network and give the folder"
        ) from error
    return folder


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all of them there, beside it."""
    with config_errors_at("weights.path"):
        names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ConfigError(f"weights.path: {index} has no weight_map; fetch the folder again")
    files = [index.with_name(Path(str(name)).name) for name in sorted({*names.values()})]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise ConfigError(f"weights.path: {index.parent} lacks {', '.join(absent)}: fetch the rest")
    return files


def positive(settings: Settings, keys: Mapping[str, str]) -> dict[str, int]:
    """Sizes of config.json by our keys.

    Args:
        settings: what config.json says.
        keys: its keys by ours.

    Raises:
        ConfigError: one is missing or no positive integer.
    """
    sizes: dict[str, int] = {}
    for ours, theirs in keys.items():
        size = settings.get(theirs)
        if not isinstance(size, int) or size < 1:
            raise ConfigError(
                f"weights.path: config.json: {theirs}={size} is not a size; restore the file"
            )
        sizes[ours] = size
    return sizes


def unsupported(key: str, value: Any, *, choices: Iterable[Any]) -> ConfigError:
    """The error for a value of config.json that asks for a part that is not built here."""
    supported = ", ".join(map(str, choices))
    return ConfigError(
        f"weights.path: config.json: {key}={value} is not supported, only {supported}"
    )
