"""Models in the format of Hugging Face's library, in a folder or on its hub."""

import copy
import hashlib
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from llm import network
from llm.checkpoints.lazy_tensor import LazyTensor, in_safetensors, in_torch_file
from llm.config.build import config_errors_at
from llm.config.check import check_nodes
from llm.config.deferred import Deferred
from llm.config.errors import ConfigError
from llm.config.loader import CONF, open_loader
from llm.files import read_object
from llm.models.size import Size
from llm.terminal.console import printable
from llm.tokenizers.base import Tokenizer
from llm.weights.base import Weights
from llm.weights.config_types import MOST, require_types
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
# Names of the token embedding, which has `vocab_size` rows.
TOKEN_TABLES = ("wte.weight", "embed_tokens.weight", "word_embeddings.weight")

Settings = dict[str, Any]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Folder:
    """A folder with a published model: config.json, weights in one file or in shards, and the tokenizer's files."""

    path: Path

    @property
    def settings(self) -> Settings:
        """The content of config.json.

        Raises:
            ConfigError: the file is missing, or is not a JSON object.
        """
        with config_errors_at("weights.path"):
            return read_object(self.path / "config.json")

    @property
    def files(self) -> list[Path]:
        """The files of the weights, the architecture and the tokenizer."""
        described = {file for pattern in DESCRIPTION for file in self.path.glob(pattern)}
        return sorted(described | {*self._tensor_files()})

    @cached_property
    def published(self) -> FolderSettings | None:
        """The folder's settings; None if its format has none.

        Raises:
            ConfigError: a file cannot be read.
        """
        with config_errors_at("weights.path"):
            return read_settings(self.path)

    def tensors(self) -> dict[str, LazyTensor]:
        """Return the parameters by Hugging Face's names.

        Raises:
            ConfigError: a file is missing or damaged.
        """
        tensors: dict[str, LazyTensor] = {}
        for file in self._tensor_files():
            read = in_safetensors if file.suffix == ".safetensors" else in_torch_file
            tensors |= read(file)
        return tensors

    def tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer (`read_tokenizer`); None if there is none.

        Raises:
            ConfigError: its files cannot be read.
        """
        with config_errors_at("weights.path"):
            return read_tokenizer(self.path, self.published)

    def _tensor_files(self) -> list[Path]:
        for name in (SAFETENSORS, TORCH):
            if (self.path / name).is_file():
                return [self.path / name]
            if (index := self.path / f"{name}.index.json").is_file():
                return _shards(index)
        raise ConfigError(
            f"weights.path: {self.path} has no weights: neither {SAFETENSORS} nor {TORCH}, in one file or in shards; "
            "download them"
        )


@dataclass(frozen=True)
class Architecture:
    """Overrides of the packaged configuration that describe a model.

    Attributes:
        options: options of config groups, such as `model/feed_forward=gelu`.
        values: values by full key.
    """

    options: Sequence[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)

    def __or__(self, other: "Architecture") -> "Architecture":
        """Return the overrides of both; those of `other` have precedence."""
        return Architecture([*self.options, *other.options], {**self.values, **other.values})


# Keys of config.json that all families have and that do not change what a language model computes. The ids of special
# tokens and the dtype are read as settings of the folder.
WITHOUT_EFFECT = frozenset(
    {
        *("model_type", "architectures", "transformers_version", "dtype", "torch_dtype"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
        *("output_hidden_states", "return_dict", "chunk_size_feed_forward"),
        *("id2label", "label2id", "problem_type"),
        "quantization_config",  # refused for itself
    }
)
# Keys that all families have, and their supported values.
EXPECTED = {
    "is_encoder_decoder": [False],
    "per_layer_config": [None, {}],
}


@dataclass(frozen=True)
class HuggingFaceWeights(Weights):
    """The weights of a published family of models.

    Args:
        path: a folder, or a name on Hugging Face's hub such as `openai-community/gpt2`, downloaded on first use.
        context_length: a context length shorter than the model's, in tokens.

    Attributes:
        model_type: name of the family in config.json.
        title: name of the family in messages.
        sizes: keys that must be there, positive integers, by ours.
        defaults: keys of config.json that are read and may be absent, and their values then.
        expected: keys with one supported value, and the spellings of it; the first is the default.
        without_effect: keys that do not change what the model computes, besides `WITHOUT_EFFECT`.
        classes: classes of parts by which a similar model is recognized.

    Raises:
        ValueError: the path is neither, or the context length is not positive.
    """

    path: str
    context_length: int | None = None

    model_type: ClassVar[str]
    title: ClassVar[str]
    sizes: ClassVar[Mapping[str, str]]
    defaults: ClassVar[Mapping[str, Any]] = {}
    expected: ClassVar[Mapping[str, Sequence[Any]]] = {}
    without_effect: ClassVar[frozenset[str]] = frozenset()
    classes: ClassVar[Sequence[type[nn.Module]]] = ()

    def __post_init__(self) -> None:
        if not Path(self.path).is_dir() and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", self.path):
            hint = "; use weights=gguf" if self.path.endswith(".gguf") else ""
            raise ValueError(
                f"path={self.path} is neither a folder nor a name on Hugging Face's hub{hint}"
            )
        if self.context_length is not None and self.context_length < 1:
            raise ValueError(f"context_length={self.context_length}: give 1 or more, or null")

    @classmethod
    @abstractmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return the architecture of a config.json, whose absent keys have their defaults."""

    @classmethod
    @abstractmethod
    def key_map(cls, settings: Settings) -> KeyMap:
        """Return the rules that map the published tensors to ours."""

    @classmethod
    @abstractmethod
    def describe(cls, model: nn.Module) -> Settings:
        """Return the config.json of the most similar model of this family.

        Raises:
            NoCounterpartError: the family has no part of some class in the model.
        """

    @classmethod
    def outline(cls, settings: Settings) -> nn.Module:
        """Return the model of a config.json without weights, on the device `meta`."""
        config = compose_architecture(cls.architecture({**cls.defaults, **settings}))
        parts = check_nodes(config, {"size": Size, "model": Deferred[nn.Module]})
        return parts["model"].outline

    @cached_property
    def folder(self) -> Folder:
        """The folder, downloaded if necessary."""
        path = Path(self.path)
        return Folder(path if path.is_dir() else download(self.path))

    @cached_property
    def settings(self) -> Settings:
        """The content of config.json, checked.

        Raises:
            ConfigError: the model is of another family, or has unsupported parts.
        """
        settings = self.folder.settings
        family = settings.get("model_type")
        if family != self.model_type:
            raise ConfigError(
                f"weights.path: {self.path} is a model of type {family}, not {self.model_type}; "
                "use weights=auto, which finds the type, or another path"
            )
        if settings.get("quantization_config"):
            raise ConfigError(
                f"weights.path: {self.path} is quantized (quantization_config in config.json); use the weights that "
                "are not"
            )
        for key, values in {**EXPECTED, **self.expected}.items():
            if key in settings and settings[key] not in values:
                raise ConfigError(
                    f"weights.path: config.json: {key}={printable(str(settings[key]))} is not supported, only "
                    f"{values[0]}"
                )
        require_types(settings, self.defaults)
        return {**self.defaults, **settings}

    @property
    def config(self) -> DictConfig:
        """A copy of the nodes `model`, `size` and `tokenizer`, and `data.template` for a chat model."""
        return copy.deepcopy(self._config)

    @cached_property
    def _config(self) -> DictConfig:
        architecture = self.architecture(self.settings)
        values = {**architecture.values}
        if self.context_length is not None:
            length = values["size.context_length"]
            if self.context_length > length:
                raise ConfigError(
                    f"weights.context_length: {self.context_length} is more than the {length} tokens of "
                    f"{self.path}; give {length} or less"
                )
            values["size.context_length"] = self.context_length
        cls = type(self)
        if self.published is not None and (template := self.published.template) is not None:
            values["data.template"] = template
        weights = {"_target_": f"{cls.__module__}.{cls.__qualname__}", "path": self.path}
        tokenizer = {"_target_": "llm.weights.base.tokenizer_of", "weights": weights}
        return compose_architecture(
            replace(architecture, values={**values, "tokenizer": tokenizer})
        )

    @property
    def published(self) -> FolderSettings | None:
        """The folder's settings."""
        return self.folder.published

    @property
    def dtype(self) -> str | None:
        """The dtype in config.json, or that of the first tensor."""
        if self.published is not None and self.published.dtype is not None:
            return self.published.dtype
        first = next(iter(self.folder.tensors().values()), None)
        return None if first is None else str(first.read().dtype).removeprefix("torch.")

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of the folder, or that of the family.

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
        """Return the tokenizer for folders without one; None if the family has several."""
        return None

    def load(self, model: nn.Module) -> None:
        """Fill a model of ours with the folder's tensors.

        Raises:
            ConfigError: lists all tensors that are missing, unexpected or of a wrong shape.
        """
        tensors = self.folder.tensors()
        if "score.weight" in tensors:
            raise ConfigError(
                f"weights.path: {self.path} is a classifier (it has score.weight), not a language model; a classifier "
                "trained here is used from its run, with llm classify or weights=run"
            )
        for name, stored in tensors.items():
            # Not checked by `KeyMap.load`, which accepts fewer rows, because the model may have additional tokens.
            if name.endswith(TOKEN_TABLES) and stored.shape[0] != self.settings["vocab_size"]:
                raise ConfigError(
                    f"weights.path: {stored.name} has {stored.shape[0]} rows, but config.json has "
                    f"vocab_size={self.settings['vocab_size']}; restore the files of one model"
                )
        self.key_map(self.settings).load(tensors, model)

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Sixteen characters of the SHA-256 of all files."""
        digest = hashlib.sha256()
        for file in self.folder.files:
            with file.open("rb") as opened:
                digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()[:16]


def compose_architecture(architecture: Architecture) -> DictConfig:
    """Return the packaged configuration with the overrides of a model."""
    config = copy.deepcopy(_composed(tuple(architecture.options)))
    for key, value in architecture.values.items():
        OmegaConf.update(config, key, value, force_add=True)
    return config


@lru_cache
def _composed(options: Sequence[str]) -> DictConfig:
    """Compose options of the packaged configuration, once: it takes a tenth of a second."""
    config = open_loader(CONF).load_configuration(None, [*options], run_mode=RunMode.RUN)
    with open_dict(config):
        del config["hydra"]
    return config


def download(name: str) -> Path:
    """Return the folder of a model in the cache of Hugging Face's hub; downloaded on first use.

    Raises:
        ConfigError: it is not in the cache and cannot be downloaded.
    """
    # Imported here, because the import takes a quarter of a second.
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
            raise ConfigError(f"{refusal}, and it is not in the hub's cache") from error
        raise ConfigError(
            f"weights.path: {name} is not a folder, and cannot be downloaded from Hugging Face's hub ({reason}): "
            "correct the name, or download it on another machine and give the folder"
        ) from error
    return folder


def _shards(index: Path) -> list[Path]:
    """Return the files in an index; all must exist beside it."""
    with config_errors_at("weights.path"):
        names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ConfigError(f"weights.path: {index} has no weight_map; download the folder again")
    files = [index.with_name(Path(str(name)).name) for name in sorted({*names.values()})]
    if absent := [file.name for file in files if not file.is_file()]:
        raise ConfigError(
            f"weights.path: {index.parent} has no {', '.join(absent)}: download the missing files"
        )
    return files


def positive(settings: Settings, keys: Mapping[str, str]) -> dict[str, int]:
    """Return sizes in config.json by our keys.

    Args:
        settings: the content of config.json.
        keys: keys of config.json by ours.

    Raises:
        ConfigError: a size is missing or is not a positive integer.
    """
    sizes: dict[str, int] = {}
    for ours, theirs in keys.items():
        size = settings.get(theirs)
        if type(size) is not int or not 1 <= size <= MOST:
            raise ConfigError(
                f"weights.path: config.json: {theirs}={size} is not a positive integer; restore the file"
            )
        sizes[ours] = size
    return sizes


def supported(
    settings: Settings, key: str, choices: Mapping[Any, Result], *, default: Any
) -> Result:
    """Return the choice for a value of config.json.

    Raises:
        ConfigError: the value is not one of the choices.
    """
    value = settings.get(key, default)
    if value not in [*choices]:  # a list, because the value may be unhashable
        raise ConfigError(
            f"weights.path: config.json: {key}={value} is not supported, only {', '.join(map(str, choices))}"
        )
    return choices[value]
