"""What a run computes: parameters, FLOPs and tokens, counted on a model that has no weights."""

import inspect
import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from llm.callbacks.throughput import SupportsFlops
from llm.config.allowlist import locate
from llm.config.build import build, config_errors_at
from llm.config.errors import UserError
from llm.data.base import at_least
from llm.data.corpora.text import TextDataModule
from llm.data.examples.base import ExamplesDataModule
from llm.tokenizers.base import Tokenizer
from llm.weights.model_setup import initialize

# Tokenizers that are read from published files, of which a plan has no need.
PUBLISHED = {"llm.tokenizers.gpt2.gpt2_tokenizer": 50257}


class Cost(NamedTuple):
    """What a run is and computes; None where only its data tell.

    Attributes:
        parameters: all of them, shared ones once.
        embedding: those in the tables of tokens and positions and in the head.
        block: those in the largest block; 0 where there are no blocks.
        trained: those that are not frozen.
        flops_per_token: of training, forward and backward; None too where the model does not count
            them, or trains only a part of itself.
        tokens_per_step: that all devices together read in an optimizer step.
        steps: optimizer steps.
    """

    parameters: int
    embedding: int
    block: int
    trained: int
    flops_per_token: int | None
    tokens_per_step: int | None
    steps: int | None

    @property
    def tokens(self) -> int | None:
        """That the run reads."""
        return _product(self.tokens_per_step, self.steps)

    @property
    def flops(self) -> int | None:
        """That the run computes."""
        return _product(self.flops_per_token, self.tokens)


def _product(left: int | None, right: int | None) -> int | None:
    return None if left is None or right is None else left * right


def cost(config: DictConfig) -> Cost | None:
    """Count what a composed configuration of `llm train` is; None where its vocabulary is not known.

    Raises:
        ConfigError: a part cannot be built, or a batch has no rows.
    """
    with config_errors_at("data"):
        at_least("batch_size", config.data.batch_size, least=1)
    complete = completed(config)
    if complete is None:
        return None
    return Cost(*counts(complete), tokens_per_step(complete), steps(complete))


def completed(config: DictConfig) -> DictConfig | None:
    """The configuration with what the model would take from its data filled in.

    The number of classes hardly matters to what a model costs: two stand in for those not yet found.

    Returns:
        A copy, or None where the vocabulary is known neither from the tokenizer nor from data that are there.
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
    """The ids of the configured tokenizer, or of the tokens that are cached; None where neither says."""
    node = config.tokenizer
    given = node.get("vocab_size") or PUBLISHED.get(node._target_)
    if given is not None:
        return given
    target = locate(node._target_, config.trust)
    if inspect.isclass(target) and issubclass(target, Tokenizer):  # nothing is fitted
        return build(node).vocab_size
    read = extent(config)
    return None if read is None else read.vocabulary


class Extent(NamedTuple):
    """What data that can be read tell of a run.

    Attributes:
        longest: tokens of the longest row of training, filled up as its batch is.
        mean: tokens of a row, on average.
        batches: that an epoch has.
        vocabulary: ids of the tokenizer.
    """

    longest: int
    mean: float
    batches: int
    vocabulary: int


def extent(config: DictConfig) -> Extent | None:
    """The extent of the data of a configuration, if they can be read without fetching or tokenizing a corpus.

    Data of examples can where their files are on this machine, text where its tokens are cached.
    """
    if OmegaConf.missing_keys(config.data):
        return None
    node = {key: config.get(key) for key in ("data", "weights", "trust")}
    plain = {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in node.items()
    }
    target: Any = locate(config.data._target_, config.trust)
    if issubclass(target, ExamplesDataModule):
        return _examples(json.dumps({**plain, "times": times(plain["data"])}))
    return _read(OmegaConf.create(plain)) if issubclass(target, TextDataModule) else None


def times(node: Any) -> list[float]:
    """When the files that a node names were written."""
    if isinstance(node, dict | list):
        values = node.values() if isinstance(node, dict) else node
        return [each for value in values for each in times(value)]
    file = Path(node).expanduser() if isinstance(node, str) and len(node) < 256 else None
    return [file.stat().st_mtime] if file and file.is_file() else []


@cache
def _examples(text: str) -> Extent | None:
    """Points of a sweep that share their data read them once."""
    return _read(OmegaConf.create(json.loads(text)))


def _read(config: Any) -> Extent | None:
    try:
        weights = build(config.weights)
        data = build(config.data, **({"tokenizer": weights.tokenizer()} if weights else {}))
        if not data.is_at_hand:
            return None
        data.setup("fit")
    except (UserError, OSError):  # what is wrong with the data is theirs to say, when they are read
        return None
    return Extent(
        data.longest_row, data.tokens_per_row, data.batches_per_epoch, data.tokenizer.vocab_size
    )


def tokens_per_step(config: DictConfig) -> int | None:
    """Tokens of an optimizer step; of examples on average, and None where they cannot be read."""
    row = mean_row(config)
    return None if row is None else round(config.data.batch_size * row * config.trainer.accumulate)


def mean_row(config: DictConfig) -> float | None:
    """Tokens of a row of training, on average; None for examples that cannot be read."""
    target: Any = locate(config.data._target_, config.trust)
    if issubclass(target, TextDataModule):
        return config.data.context_length
    read = extent(config)
    return None if read is None else read.mean


def steps(config: DictConfig) -> int | None:
    """Optimizer steps of the budget."""
    settings = build(config.trainer)
    if settings.max_steps is not None:
        return settings.max_steps
    if settings.max_tokens is not None:
        row = mean_row(config)
        return None if row is None else settings.steps(1, config.data.batch_size * row)
    read = extent(config)
    return None if read is None else settings.steps(read.batches, 0)


class Counts(NamedTuple):
    """What a model is: see `Cost`."""

    parameters: int
    embedding: int
    block: int
    trained: int
    flops_per_token: int | None


def counts(config: DictConfig) -> Counts:
    """Count a completed configuration's model; the points of a sweep that share one build it once."""
    node = {"model": config.task.model, "adapter": config.get("adapter"), "trust": config.trust}
    plain = {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in node.items()
    }
    return _counts(json.dumps({**plain, "row": max(1, round(mean_row(config) or context(config)))}))


@cache
def _counts(text: str) -> Counts:
    config = OmegaConf.create(json.loads(text))
    with torch.device("meta"):
        model: nn.Module = build(config.model)
        initialize(model, None, adapter=build(config.adapter))
    total = sizes(model.parameters())
    trained = sizes(p for p in model.parameters() if p.requires_grad)
    flops = None
    if isinstance(model, SupportsFlops) and trained == total:
        flops = model.flops_per_token(config.row)
    stack = cast(nn.ModuleList, getattr(model, "blocks", ()))
    block = max((sizes(each.parameters()) for each in stack), default=0)
    return Counts(total, embedding_parameters(model), block, trained, flops)


def context(config: DictConfig) -> int:
    """The most tokens in a row of training: of examples that can be read those of the longest."""
    most = config.data.get("context_length") or config.size.context_length
    target: Any = locate(config.data._target_, config.trust)
    read = None if issubclass(target, TextDataModule) else extent(config)
    return most if read is None else read.longest


def embedding_parameters(model: nn.Module) -> int:
    """Parameters in tables and in the head: those that do not grow with depth."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = getattr(model, "head", None)
    modules = nn.ModuleList([*tables, *([head] if isinstance(head, nn.Module) else [])])
    return sizes(modules.parameters())


def sizes(parameters: Any) -> int:
    """How many numbers these are."""
    return sum(parameter.numel() for parameter in parameters)
