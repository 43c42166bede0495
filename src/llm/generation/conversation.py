"""A conversation, cut to the context of its model."""

from itertools import groupby
from typing import NamedTuple

from llm.data.examples.template import ChatTemplate, Message
from llm.tokenizers.base import Tokenizer


class Turn(NamedTuple):
    """A message of the user, the response to it and the system message at that time."""

    message: str
    response: str
    system: str | None = None


class Conversation:
    """The turns so far, and a prompt of the newest ones with room for a response.

    Args:
        template: converts messages to tokens, as in the training of the model.
        tokenizer: the tokenizer of the model.
        context_length: number of tokens that the model reads of a text.
        room: number of tokens of the context that a prompt leaves for the response.

    Attributes:
        system: the system message; None for that of the template, if it has one.
        turns: all turns, the oldest first.
        dropped: number of the oldest turns that are no longer in the prompt.

    Raises:
        ValueError: `room` is not between 0 and `context_length`.
    """

    def __init__(
        self, template: ChatTemplate, tokenizer: Tokenizer, *, context_length: int, room: int
    ) -> None:
        if room < 1:
            raise ValueError(f"room={room}: a response needs 1 token or more")
        if room >= context_length:
            raise ValueError(
                f"room={room}: a response needs fewer tokens than the context's {context_length}"
            )
        self.template = template
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.room = room
        self.system: str | None = None
        self.turns: list[Turn] = []
        self.dropped = 0

    @property
    def demonstrations(self) -> list[list[Message]]:
        """The turns as training data: one conversation for each system message.

        Each also has all earlier turns, whose responses are marked as not to be learned.
        """
        found, before = [], 0
        for system, turns in groupby(self.turns, key=lambda turn: turn.system):
            end = before + len(list(turns))
            old = [message._replace(learned=False) for message in _said(self.turns[:before])]
            found.append([*_system(system), *old, *_said(self.turns[before:end])])
            before = end
        return found

    def prompt(self, message: str) -> list[int]:
        """Return the tokens of a prompt: the system message, the turns that fit and the user's new message.

        Whole turns are dropped, the oldest first; they stay dropped.

        Raises:
            ValueError: the message does not fit even alone, or the tokenizer lacks a token of the
                template; then no turn is dropped.
        """
        limit = self.context_length - self.room
        dropped = self.dropped
        # Each try encodes all messages, because the length of a turn depends on the template.
        while len(tokens := self._encode(dropped, message)) > limit:
            if dropped == len(self.turns):
                raise ValueError(
                    f"the message takes {len(tokens):,} tokens, including the template around it, and "
                    f"{limit:,} are left for it in a context of {self.context_length:,}: shorten it"
                )
            dropped += 1
        self.dropped = dropped
        return tokens

    def add(self, message: str, response: str) -> None:
        """Add a turn."""
        self.turns.append(Turn(message, response, self.system))

    def reset(self) -> None:
        """Remove all turns; the system message stays."""
        self.turns.clear()
        self.dropped = 0

    def _encode(self, dropped: int, message: str) -> list[int]:
        turns = _said(self.turns[dropped:])
        messages = [*_system(self.system), *turns, Message("user", message)]
        return self.template.encode_prompt(messages, self.tokenizer)


def _system(message: str | None) -> list[Message]:
    return [] if message is None else [Message("system", message)]


def _said(turns: list[Turn]) -> list[Message]:
    pairs = ((Message("user", turn.message), Message("assistant", turn.response)) for turn in turns)
    return [message for pair in pairs for message in pair]
