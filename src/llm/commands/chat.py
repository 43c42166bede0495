"""`llm chat`: talk with a model that was trained on conversations."""

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig

from llm.config.build import build, config_errors_at
from llm.config.check import check
from llm.config.errors import ConfigError
from llm.config.point import Point
from llm.data.examples.template import ChatTemplate, stored_template
from llm.generation.chat_session import ChatSession
from llm.generation.conversation import Conversation
from llm.generation.model_loading import (
    autocast,
    load_language_model,
    open_weights,
    stop_strings,
    use_hardware,
)
from llm.generation.prefix_cache import PrefixCache
from llm.generation.text_generation import stream_tokens
from llm.terminal import shell
from llm.terminal.streams import terminal
from llm.tokenizers.base import Tokenizer
from llm.weights.base import Weights


def main(point: Point) -> None:
    """Talk with the model of a composed configuration."""
    chat(point.config)


def chat(config: DictConfig) -> None:
    """Talk as a composed configuration of `llm chat` asks, until the person leaves.

    Raises:
        ConfigError: the configuration is wrong, or the model knows no conversations.
    """
    check(config)
    weights, hardware = open_weights(config), use_hardware(config)
    template = build(config.template) or trained_template(weights)
    tokenizer, sampler = weights.tokenizer(), build(config.sampler)
    require_tokens(template, tokenizer)
    model: Any = load_language_model(weights, hardware)
    with config_errors_at("max_tokens"):
        room = min(config.max_tokens, model.context_length // 2)
        conversation = Conversation(template, tokenizer, model.context_length, room)
    conversation.system = config.system
    # A model that begins another turn has ended its own.
    with config_errors_at("template"):
        ends = template.end_tokens(tokenizer)
        stops = [*template.stops, *stop_strings(config)]
    memory = PrefixCache()

    def answer(prompt: Sequence[int], seed: int) -> Iterator[str]:
        most = min(config.max_tokens, model.context_length - len(prompt))
        pieces = stream_tokens(model, tokenizer, [prompt], most, sampler, seed, stops, ends, memory)
        return (piece for _, piece in pieces)

    with autocast(hardware):
        ChatSession(conversation, answer, terminal(), config.seed).run()


def trained_template(weights: Weights) -> ChatTemplate:
    """The template that the weights were trained with, or that their folder brings.

    Raises:
        ConfigError: there is none.
    """
    template = stored_template(weights.config)
    if template is None:
        train = shell.command_line(shell.program(), "train", "experiment=instruct")
        raise ConfigError(
            f"template: {weights.path} was not trained on conversations; train it on some with {train} weights=… "
            f"{shell.quoted_word(f'weights.path={weights.path}')}, or choose a template: template=plain lets any model "
            "continue a dialogue"
        )
    return template


def require_tokens(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    """Let pass a template that the model can have been trained on.

    Raises:
        ConfigError: the tokenizer lacks a special token of the template.
    """
    lacking = [name for name in template.special_tokens if name not in tokenizer.special_tokens]
    if lacking:
        raise ConfigError(
            f"template: the tokenizer has no {', '.join(lacking)}, so the model was not trained on "
            "this template; template=run is the one that it was trained on, template=plain needs no tokens"
        )
