"""Parameters, FLOPs and tokens of a run, counted on a model on the device `meta`, without weights."""

import inspect
import json
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from llm.callbacks.throughput import SupportsFlops
from llm.config.allowlist import locate
from llm.config.annotations import product
from llm.config.build import build, config_errors_at
from llm.config.errors import UserError
from llm.data.base import DataModule, at_least
from llm.data.corpora.text import TextDataModule
from llm.data.examples.base import ExamplesDataModule
from llm.models.size import active_parameters
from llm.tokenizers.base import Tokenizer
from llm.weights.model_setup import initialize

# Vocabulary sizes of published tokenizers, which would need a download.
PUBLISHED = {"llm.tokenizers.gpt2.gpt2_tokenizer": 50257}


class Cost(NamedTuple):
    """The size and compute of a run; None for values that are not known before its data are read.

    Attributes:
        parameters: number of parameters; shared ones count once.
        active_parameters: those that compute a token; the experts that it does not choose are left out.
        embedding: parameters of the token and position embeddings and of the head.
        block: parameters of the largest block; 0 if there are no blocks.
        trained: parameters that are not frozen.
        flops_per_token: FLOPs of training per token, forward and backward; None if the model does not count them, or
            trains only some of its parameters.
        tokens_per_step: tokens per optimizer step of all devices.
        steps: optimizer steps.
    """

    parameters: int
    active_parameters: int
    embedding: int
    block: int
    trained: int
    flops_per_token: int | None
    tokens_per_step: int | None = None
    steps: int | None = None

    @property
    def tokens(self) -> int | None:
        """Training tokens of the run."""
        return self.tokens_per_step and self.steps and self.tokens_per_step * self.steps

    @property
    def flops(self) -> int | None:
        """FLOPs of the run."""
        return self.flops_per_token and self.tokens and self.flops_per_token * self.tokens


def cost(config: DictConfig) -> Cost | None:
    """Return the cost of a composed configuration of `llm train`; None if its vocabulary is not known.

    Raises:
        ConfigError: a node cannot be built, or a batch has no rows.
    """
    with config_errors_at("data"):
        at_least("batch_size", config.data.batch_size, least=1)
    filled = fill_in_sizes(config)
    if filled is None:
        return None
    return counts(filled)._replace(tokens_per_step=tokens_per_step(filled), steps=steps(filled))


def fill_in_sizes(config: DictConfig) -> DictConfig | None:
    """Return a copy of the configuration with the sizes that the model takes from its data; None if unknown.

    An unknown number of classes is set to two, because it hardly affects the cost.
    """
    config = deepcopy(config)
    if OmegaConf.is_missing(config.model, "vocab_size"):
        size = vocabulary(config)
        if size is None:
            return None
        config.model.vocab_size = size
    if OmegaConf.is_missing(config.task.model, "num_classes"):
        config.task.model.num_classes = 2
    return config


def vocabulary(config: DictConfig) -> int | None:
    """Return the vocabulary size of the tokenizer or of cached tokens; None if it is not known."""
    node = config.tokenizer
    given = node.get("vocab_size") or PUBLISHED.get(node._target_)
    if given is not None:
        return given
    target = locate(node._target_, config.trust)
    if inspect.isclass(target) and issubclass(target, Tokenizer):  # a function may train one
        return build(node).vocab_size
    read = extent(config)
    return None if read is None else read.vocabulary


class Extent(NamedTuple):
    """The sizes of training data.

    Attributes:
        longest: tokens of the longest row, with the padding of its batch.
        mean: mean tokens of a row.
        batches: batches per epoch.
        vocabulary: vocabulary size of the tokenizer.
    """

    longest: int
    mean: float
    batches: int
    vocabulary: int


def extent(config: DictConfig) -> Extent | None:
    """Return the extent of a configuration's data; None if that needs a download or the tokenization of a corpus."""
    if OmegaConf.missing_keys(config.data):
        return None
    text = plain_text(config, ("data", "weights", "trust"))
    if makes(config, ExamplesDataModule):
        times = modification_times(json.loads(text)["data"])
        return _read_once(text, tuple(times))
    return _read(text) if makes(config, TextDataModule) else None


def makes(config: DictConfig, kind: type[DataModule]) -> bool:
    """Return whether the class or function of a configuration's data is known to make a kind of DataModule."""
    made = product(locate(config.data._target_, config.trust))
    return inspect.isclass(made) and issubclass(made, kind)


def plain_text(config: DictConfig, keys: Sequence[str], **more: Any) -> str:
    """Return nodes of a configuration as JSON without references, for use as the key of a cache."""
    nodes = {key: OmegaConf.select(config, key) for key in keys}
    plain = {
        key: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        for key, node in nodes.items()
    }
    return json.dumps(plain | more)


def modification_times(node: Any) -> list[float]:
    """Return the modification times of the files that a node names."""
    if isinstance(node, dict | list):
        values = node.values() if isinstance(node, dict) else node
        return [each for value in values for each in modification_times(value)]
    file = Path(node).expanduser() if isinstance(node, str) and len(node) < 256 else None
    return [file.stat().st_mtime] if file and file.is_file() else []


@cache
def _read_once(text: str, times: Sequence[float]) -> Extent | None:
    """Read examples once for all points of a sweep, unless a file changes."""
    return _read(text)


def _read(text: str) -> Extent | None:
    config = OmegaConf.create(json.loads(text))
    try:
        weights = build(config.weights)
        data = build(config.data, **({"tokenizer": weights.tokenizer()} if weights else {}))
        if not data.is_ready:
            return None
        data.setup("fit")
    except (UserError, OSError):  # reported when the data are read for training
        return None
    return Extent(
        data.longest_row, data.tokens_per_row, data.batches_per_epoch, data.tokenizer.vocab_size
    )


def tokens_per_step(config: DictConfig) -> int | None:
    """Return the mean tokens per optimizer step; None for examples that cannot be read."""
    row = mean_row(config)
    return None if row is None else round(config.data.batch_size * row * config.trainer.accumulate)


def mean_row(config: DictConfig) -> float | None:
    """Return the mean tokens of a training row; None for examples that cannot be read."""
    if makes(config, TextDataModule):
        return config.data.get("context_length", config.size.context_length)
    read = extent(config)
    return None if read is None else read.mean


def steps(config: DictConfig) -> int | None:
    """Return the optimizer steps of the budget; None if they are not known."""
    settings = build(config.trainer)
    if settings.max_steps is not None:
        return settings.max_steps
    if settings.max_tokens is not None:
        row = mean_row(config)
        return None if row is None else settings.steps(1, config.data.batch_size * row)
    read = extent(config)
    return None if read is None else settings.steps(read.batches, 0)


def counts(config: DictConfig) -> Cost:
    """Return the sizes of a model, counted once for all points of a sweep with the same model."""
    row = max(1, round(mean_row(config) or context(config)))
    return _counts(plain_text(config, ("task.model", "adapter", "trust"), row=row))


@cache
def _counts(text: str) -> Cost:
    config: Any = OmegaConf.create(json.loads(text))
    with torch.device("meta"):
        model: nn.Module = build(config["task.model"])
        initialize(model, None, adapter=build(config.adapter))
    return counts_of(model, config.row)


def counts_of(model: nn.Module, row: int) -> Cost:
    """Return the sizes of a model, and the FLOPs for a token of a row of `row` tokens."""
    total = sizes(model.parameters())
    trained = sizes(p for p in model.parameters() if p.requires_grad)
    flops = None
    if isinstance(model, SupportsFlops) and trained == total:
        flops = model.flops_per_token(row)
    stack = cast(nn.ModuleList, getattr(model, "blocks", ()))
    block = max((sizes(each.parameters()) for each in stack), default=0)
    active = active_parameters(model)
    return Cost(total, active, embedding_parameters(model), block, trained, flops)


def context(config: DictConfig) -> int:
    """Return the maximum tokens of a training row.

    That is the longest example if the examples can be read, otherwise the context length.
    """
    most = config.data.get("context_length") or config.size.context_length
    read = None if makes(config, TextDataModule) else extent(config)
    return most if read is None else read.longest


def embedding_parameters(model: nn.Module) -> int:
    """Return the number of parameters in embeddings and the head; it does not grow with depth."""
    head = getattr(model, "head", None)
    tables = [each for each in model.modules() if isinstance(each, nn.Embedding) or each is head]
    return sizes(nn.ModuleList(tables).parameters())


def sizes(parameters: Any) -> int:
    """Return the number of elements in parameters."""
    return sum(parameter.numel() for parameter in parameters)
