"""A conversation with a model that remembers no more than its context holds."""

from itertools import groupby
from typing import NamedTuple

from llm.data.examples.template import ChatTemplate, Message
from llm.tokenizers.base import Tokenizer


class Turn(NamedTuple):
    """A question and what was answered, under which system message."""

    question: str
    answer: str
    system: str | None = None


class Conversation:
    """What was said, and the prompt made of the newest turns that leave room for an answer.

    Args:
        template: how messages become tokens, that of the model's training.
        tokenizer: the model's.
        context_length: tokens that the model sees.
        room: of those, how many a prompt leaves free for the answer.

    Attributes:
        system: the system message; None for the template's own, if it has one.
        turns: all that were had, the oldest first.
        dropped: how many of the oldest are no longer in the prompt.

    Raises:
        ValueError: the room is none, or all of the context.
    """

    def __init__(
        self, template: ChatTemplate, tokenizer: Tokenizer, context_length: int, room: int
    ) -> None:
        if not 0 < room < context_length:
            raise ValueError(
                f"room={room}: an answer needs 1 token or more, and fewer than the context's "
                f"{context_length}"
            )
        self.template = template
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.room = room
        self.system: str | None = None
        self.turns: list[Turn] = []
        self.dropped = 0

    @property
    def messages(self) -> list[Message]:
        """All that was said, as the template takes it."""
        return self._messages(self.turns)

    @property
    def demonstrations(self) -> list[list[Message]]:
        """What was said, as data to learn from: a conversation for each system message that turns were had under.

        Each holds all that stood before its answers. Answers given under an earlier system message are in it as
        they were read, and are not learned.
        """
        found, before = [], 0
        for system, turns in groupby(self.turns, key=lambda turn: turn.system):
            end = before + len(list(turns))
            old = [message._replace(learned=False) for message in _said(self.turns[:before])]
            found.append([*_system(system), *old, *_said(self.turns[before:end])])
            before = end
        return found

    def prompt(self, question: str) -> list[int]:
        """The tokens that ask a question: after the system message and the turns that fit.

        The oldest turns are dropped first, whole ones, and stay so.

        Raises:
            ValueError: the question does not fit even alone, or the tokenizer lacks a token of the
                template; no turn is dropped then.
        """
        limit = self.context_length - self.room
        dropped = self.dropped
        while len(tokens := self._encode(dropped, question)) > limit:
            if dropped == len(self.turns):
                raise ValueError(
                    f"the question takes {len(tokens):,} tokens, including the template around it, and "
                    f"{limit:,} are left for it in a context of {self.context_length:,}: shorten it"
                )
            dropped += 1
        self.dropped = dropped
        return tokens

    def add(self, question: str, answer: str) -> None:
        """Remember a turn."""
        self.turns.append(Turn(question, answer, self.system))

    def reset(self) -> None:
        """Forget the turns; the system message stays."""
        self.turns.clear()
        self.dropped = 0

    def _encode(self, dropped: int, question: str) -> list[int]:
        messages = [*self._messages(self.turns[dropped:]), Message("user", question)]
        return self.template.encode_prompt(messages, self.tokenizer)

    def _messages(self, turns: list[Turn]) -> list[Message]:
        return [*_system(self.system), *_said(turns)]


def _system(message: str | None) -> list[Message]:
    return [] if message is None else [Message("system", message)]


def _said(turns: list[Turn]) -> list[Message]:
    pairs = ((Message("user", turn.question), Message("assistant", turn.answer)) for turn in turns)
    return [message for pair in pairs for message in pair]
