"""What a run computes: parameters, FLOPs and tokens, counted on a model that has no weights."""

import inspect
import json
from copy import deepcopy
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from llm.callbacks.throughput import CountsFlops
from llm.config.build import build, mistakes_at
from llm.config.errors import UserError
from llm.config.whitelist import locate
from llm.data.module import at_least
from llm.data.text import TextDataModule
from llm.tokenizers.tokenizer import Tokenizer
from llm.weights.initial import initialize

# Tokenizers that are read from published files, of which a plan has no need.
PUBLISHED = {"llm.tokenizers.gpt2.gpt2": 50257}


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
    with mistakes_at("data"):
        at_least("batch_size", config.data.batch_size, 1)
    complete = completed(config)
    if complete is None:
        return None
    tokens = tokens_per_step(complete)
    return Cost(*counts(complete), tokens, steps(complete, tokens))


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
    data = cached_data(config)
    return None if data is None else data.tokenizer.vocab_size


def cached_data(config: DictConfig) -> TextDataModule | None:
    """The text of a configuration, if its tokens are there already."""
    target: Any = locate(config.data._target_, config.trust)
    if not issubclass(target, TextDataModule) or OmegaConf.missing_keys(config.data):
        return None
    try:
        data = build(config.data)
        if not data.is_cached:
            return None
        data.setup("fit")
    except (UserError, OSError):  # what is wrong with the data is theirs to say, when they are read
        return None
    return data


def tokens_per_step(config: DictConfig) -> int | None:
    """Tokens of an optimizer step; None for examples, which are as long as they are."""
    target: Any = locate(config.data._target_, config.trust)
    if not issubclass(target, TextDataModule):
        return None
    return config.data.batch_size * config.data.context_length * config.trainer.accumulate


def steps(config: DictConfig, tokens: int | None) -> int | None:
    """Optimizer steps of the budget."""
    settings = build(config.trainer)
    if settings.max_steps is not None:
        return settings.max_steps
    if settings.max_tokens is not None:
        return None if tokens is None else settings.steps(1, tokens / settings.accumulate)
    data = cached_data(config)
    return None if data is None else settings.steps(data.batches_per_epoch, data.tokens_per_batch)


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
    return _counts(json.dumps({**plain, "context": context(config)}))


@cache
def _counts(text: str) -> Counts:
    config = OmegaConf.create(json.loads(text))
    with torch.device("meta"):
        model: nn.Module = build(config.model)
        initialize(model, None, build(config.adapter))
    total = sizes(model.parameters())
    trained = sizes(p for p in model.parameters() if p.requires_grad)
    flops = None
    if isinstance(model, CountsFlops) and trained == total:
        flops = model.flops_per_token(config.context)
    stack = cast(nn.ModuleList, getattr(model, "blocks", ()))
    block = max((sizes(each.parameters()) for each in stack), default=0)
    return Counts(total, embedding_parameters(model), block, trained, flops)


def context(config: DictConfig) -> int:
    """The most tokens in a row of training."""
    return config.data.get("context_length") or config.size.context_length


def embedding_parameters(model: nn.Module) -> int:
    """Parameters in tables and in the head: those that do not grow with depth."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = getattr(model, "head", None)
    modules = nn.ModuleList([*tables, *([head] if isinstance(head, nn.Module) else [])])
    return sizes(modules.parameters())


def sizes(parameters: Any) -> int:
    """How many numbers these are."""
    return sum(parameter.numel() for parameter in parameters)
