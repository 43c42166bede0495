"""`llm chat`: chat with a model that was trained on conversations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from llm.config.base import Command
from llm.config.build import config_errors_at
from llm.config.errors import ConfigError
from llm.config.rules import Rule
from llm.config.texts import one_or_several
from llm.data.examples.template import ChatTemplate, stored_template
from llm.generation.chat_session import ChatSession
from llm.generation.conversation import Conversation
from llm.generation.decoding import longest_text
from llm.generation.generation_settings import GenerationSettings
from llm.generation.model_loading import (
    autocast,
    load_language_model,
    use_hardware,
    weights_are_trained,
)
from llm.generation.prefix_cache import PrefixCache
from llm.generation.prompts import stops_have_text
from llm.generation.sampling import Sampler
from llm.generation.text_generation import stream_tokens
from llm.hardware import Hardware
from llm.terminal import shell
from llm.terminal.streams import terminal
from llm.tokenizers.base import Tokenizer
from llm.weights.base import Weights


@dataclass(frozen=True, kw_only=True)
class Chat(Command):
    """Chat with a model that was trained on conversations."""

    system: str | None
    max_tokens: int
    stop: str | Sequence[str]
    seed: int
    hardware: Hardware
    sampler: Sampler
    weights: Weights
    template: ChatTemplate | None

    rules: ClassVar[Sequence[Rule]] = (weights_are_trained, stops_have_text)

    def run(self) -> None:
        """Chat until the user leaves.

        Raises:
            ConfigError: the model has no chat template, or was not trained on this one.
        """
        weights, hardware = self.weights, use_hardware(self.hardware)
        template = self.template or trained_template(weights)
        tokenizer = weights.tokenizer()
        require_tokens(template, tokenizer)
        model: Any = load_language_model(weights, hardware)
        with config_errors_at("max_tokens"):
            longest = longest_text(model)
            room = min(self.max_tokens, longest // 2)
            conversation = Conversation(template, tokenizer, context_length=longest, room=room)
        conversation.system = self.system
        # A response also ends where the model starts the next turn.
        with config_errors_at("template"):
            ends = template.end_tokens(tokenizer)
            stops = [*template.stops, *one_or_several(self.stop)]
        memory = PrefixCache()

        def respond(prompt: Sequence[int], seed: int) -> Iterator[str]:
            most = min(self.max_tokens, longest - len(prompt))
            settings = GenerationSettings(
                max_tokens=most, sampler=self.sampler, seed=seed, end_tokens=ends, stops=stops
            )
            pieces = stream_tokens(
                model, tokenizer, prompts=[prompt], settings=settings, memory=memory
            )
            return (piece for _, piece in pieces)

        with autocast(hardware):
            ChatSession(conversation, respond, terminal=terminal(), seed=self.seed).run()


def trained_template(weights: Weights) -> ChatTemplate:
    """Return the template of the training data, or the one in the folder of the weights.

    Raises:
        ConfigError: the weights have no template.
    """
    template = stored_template(weights.config)
    if template is None:
        train = shell.command_line(shell.program(), "train", "experiment=instruct")
        raise ConfigError(
            f"template: {weights.path} was not trained on conversations; finetune it with {train} weights=… "
            f"{shell.quoted_word(f'weights.path={weights.path}')}, or choose a template: with template=plain any "
            "model continues a dialogue"
        )
    return template


def require_tokens(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    """Refuse a template with which the model cannot have been trained.

    Raises:
        ConfigError: the tokenizer lacks a special token of the template.
    """
    lacking = [name for name in template.special_tokens if name not in tokenizer.special_tokens]
    if lacking:
        raise ConfigError(
            f"template: the tokenizer has no {', '.join(lacking)}, so the model was not trained on this template; "
            "use template=run, the one that it was trained on, or template=plain, which needs no special tokens"
        )
