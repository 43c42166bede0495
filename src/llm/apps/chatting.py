"""How a model is made ready to be talked with."""

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig

from llm import shell
from llm.apps.dialogue import Dialogue
from llm.apps.loading import autocast, load_writer, open_weights, stop_strings, use_hardware
from llm.apps.terminal import terminal
from llm.config.build import build, mistakes_at
from llm.config.check import check
from llm.config.errors import ConfigError
from llm.data.template import ChatTemplate, stored_template
from llm.generation.conversation import Conversation
from llm.generation.memory import Memory
from llm.generation.text import stream_tokens
from llm.tokenizers.tokenizer import Tokenizer
from llm.weights.weights import Weights


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
    model: Any = load_writer(weights, hardware)
    with mistakes_at("max_tokens"):
        room = min(config.max_tokens, model.context_length // 2)
        conversation = Conversation(template, tokenizer, model.context_length, room)
    conversation.system = config.system
    # A model that begins another turn has ended its own.
    with mistakes_at("template"):
        ends = template.end_tokens(tokenizer)
        stops = [*template.stops, *stop_strings(config)]
    memory = Memory()

    def answer(prompt: Sequence[int], seed: int) -> Iterator[str]:
        most = min(config.max_tokens, model.context_length - len(prompt))
        pieces = stream_tokens(model, tokenizer, [prompt], most, sampler, seed, stops, ends, memory)
        return (piece for _, piece in pieces)

    with autocast(hardware):
        Dialogue(conversation, answer, terminal(), config.seed).run()


def trained_template(weights: Weights) -> ChatTemplate:
    """The template that the weights were trained with, or that their folder brings.

    Raises:
        ConfigError: there is none.
    """
    template = stored_template(weights.config)
    if template is None:
        train = shell.line(shell.program(), "train", "experiment=instruct")
        raise ConfigError(
            f"template: {weights.path} was not trained on conversations; train it on some with {train} weights=… "
            f"{shell.quoted(f'weights.path={weights.path}')}, or choose a template: template=plain lets any model "
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
