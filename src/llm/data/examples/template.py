"""Chat templates: the text around the messages of a conversation, and the mask of the responses.

A conversation is encoded piece by piece, so the author of every token is known. Messages are encoded as plain text: the
name of an end token in a message does not end it.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

from omegaconf import DictConfig, OmegaConf

from llm.config.check import check_nodes
from llm.tokenizers.base import Tokenizer

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)
FOLLOWING = {
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


class Message(NamedTuple):
    """A message of a conversation.

    Attributes:
        role: the author.
        content: the text.
        learned: whether training learns this response.
    """

    role: Role
    content: str
    learned: bool = True

    def as_row(self) -> dict[str, str | int]:
        """Return the message as an object for a file of conversations."""
        row: dict[str, str | int] = {"role": self.role, "content": self.content}
        return row if self.learned else row | {"weight": 0}


class ConversationPiece(NamedTuple):
    """A piece of a conversation's text and its author."""

    text: str
    is_template: bool
    is_response: bool


class ChatTemplate(ABC):
    """A chat template.

    Attributes:
        special_tokens: names of the special tokens that the tokenizer needs.
    """

    special_tokens: Sequence[str]

    @abstractmethod
    def messages(self, instruction: str, context: str = "") -> list[Message]:
        """Return an instruction and its input as a conversation."""

    def require(self, messages: Sequence[Message]) -> None:
        """Require that the user and the assistant alternate, after an optional system message.

        A tool's message follows the assistant's or another tool's.

        Raises:
            ValueError: the roles are in another order, or the template does not support one.
        """
        unknown = [message.role for message in messages if message.role not in ROLES]
        if unknown:
            raise ValueError(f"role {unknown[0]!r} is not one of {', '.join(ROLES)}")
        turns = messages[1:] if messages and messages[0].role == "system" else messages
        if not turns:
            raise ValueError("there is no message of the user")
        first = turns[0].role
        if first != "user":
            raise ValueError(f"the conversation begins with the {first}, not with the user")
        for before, after in pairwise(turns):
            if after.role not in FOLLOWING.get(before.role, ()):
                raise ValueError(
                    f"after the {before.role} comes the {after.role}; user and assistant must alternate"
                )

    @abstractmethod
    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer
    ) -> tuple[list[int], list[bool]]:
        """Return the tokens of a conversation, and a mask of the responses to learn, including their ends.

        If the last message is not the assistant's, the tokens end where the response begins.

        Raises:
            ValueError: the template cannot represent the messages.
        """

    def encode_prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """Return the tokens of a prompt, which end where the response begins.

        Raises:
            ValueError: see `encode`, or the last message is not the user's or a tool's.
        """
        self.require(messages)
        if messages[-1].role not in ("user", "tool"):
            raise ValueError("the last message is not the user's; end with a message of the user")
        return self.encode(messages, tokenizer)[0]

    @abstractmethod
    def render(self, messages: Sequence[Message]) -> str:
        """Return the text that `encode` encodes.

        Raises:
            ValueError: see `encode`.
        """

    def ordinary_text(self, messages: Sequence[Message]) -> str:
        """Return the text to train a tokenizer on, by default that of `render`."""
        return self.render(messages)

    @abstractmethod
    def end_token(self, tokenizer: Tokenizer) -> int | None:
        """Return the special token that ends a response; None if it is not one token, see `stops`."""

    @abstractmethod
    def end_tokens(self, tokenizer: Tokenizer) -> set[int]:
        """Return the special tokens of the template; each of them ends a response."""

    @property
    @abstractmethod
    def stops(self) -> list[str]:
        """The text that ends a response, if that is not one special token."""

    @abstractmethod
    def jinja(self, begin: str = "", gap: str = "") -> str:
        """Return the template in Jinja, for Hugging Face's library.

        Args:
            begin: text that a tokenizer adds before every text.
            gap: text that a tokenizer adds before each piece that is encoded separately.
        """


@dataclass(frozen=True)
class Template(ChatTemplate):
    """A chat template given by the text before, after and between messages.

    Args:
        begin: text before a message, by role (system, user, assistant, and tool if the format supports it).
        end: text after a message, by role. The assistant's end is learned as part of the response.
        separator: text between two messages.
        special_tokens: names in the texts above that are one token each.
        system_message: default system message, or None.
        system_message_with_input: default system message of an instruction with an input; None for
            system_message.
        input_separator: text between an instruction and its input, in one message.

    Raises:
        ValueError: a role is missing or unknown, a response has no end, or a special token is not in these
            texts or is in `input_separator`.
    """

    begin: Mapping[str, str]
    end: Mapping[str, str]
    separator: str = ""
    special_tokens: Sequence[str] = ()
    system_message: str | None = None
    system_message_with_input: str | None = None
    input_separator: str = "\n"

    def __post_init__(self) -> None:
        for name, roles in (("begin", self.begin), ("end", self.end)):
            if {*roles, "tool"} != {*ROLES} or ("tool" in self.begin) != ("tool" in self.end):
                raise ValueError(
                    f"{name}: has wrong roles ({', '.join(roles)}); give a text for each of "
                    "system, user, assistant, and for tool in both begin and end or in neither"
                )
        if not self.end["assistant"]:
            raise ValueError("end.assistant: is empty, so a response would never end; give a text")
        own = [*self.begin.values(), *self.end.values(), self.separator]
        for token in self.special_tokens:
            if not any(token in text for text in own):
                raise ValueError(
                    f"special_tokens: {token} is not in begin, end or separator; remove it"
                )
            if token in self.input_separator:
                raise ValueError(
                    f"input_separator: {token} is a special token, which messages cannot contain; remove it"
                )

    def messages(self, instruction: str, context: str = "") -> list[Message]:
        """Return an instruction and its input as a conversation."""
        if not context:
            return [Message("user", instruction)]
        user = Message("user", f"{instruction}{self.input_separator}{context}")
        if self.system_message_with_input is None:
            return [user]
        return [Message("system", self.system_message_with_input), user]

    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer
    ) -> tuple[list[int], list[bool]]:
        """Return the tokens and the mask, see `ChatTemplate.encode`.

        Raises:
            ValueError: the roles do not alternate, or the tokenizer lacks a special token.
        """
        lacking = [name for name in self.special_tokens if name not in tokenizer.special_tokens]
        if lacking:
            raise ValueError(f"the tokenizer lacks {lacking}; add them by with_special_tokens")
        tokens = list(tokenizer.ends[0])  # ids that a published model expects before every text
        is_response = [False] * len(tokens)
        for piece in self._pieces(messages):
            new = tokenizer.encode(piece.text, special=piece.is_template)
            tokens += new
            is_response += [piece.is_response] * len(new)
        return tokens, is_response

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text that `encode` encodes."""
        return "".join(piece.text for piece in self._pieces(messages))

    def ordinary_text(self, messages: Sequence[Message]) -> str:
        """Return the text of `render` without special tokens."""
        names = "|".join(map(re.escape, sorted(self.special_tokens, key=len, reverse=True)))
        return "".join(
            re.sub(names, "", piece.text) if piece.is_template and names else piece.text
            for piece in self._pieces(messages)
        )

    def end_token(self, tokenizer: Tokenizer) -> int | None:
        """Return the special token that ends a response, or None."""
        return tokenizer.special_tokens.get(self.end["assistant"])

    def end_tokens(self, tokenizer: Tokenizer) -> set[int]:
        """Return the special tokens of the template: the start of another message ends a response too."""
        return {tokenizer.special_tokens[name] for name in self.special_tokens}

    @property
    def stops(self) -> list[str]:
        """The text that ends a response, if that is not one special token."""
        end = self.end["assistant"]
        return [] if end in self.special_tokens else [end]

    def jinja(self, begin: str = "", gap: str = "") -> str:
        """Return the template in Jinja."""
        first = ""
        if self.system_message is not None:
            before, after = self._around("system", gap=gap)
            first = _JINJA_SYSTEM.format(
                _quoted(before + self.system_message + after + self.separator)
            )
        roles = "".join(
            _JINJA_ROLE.format(*map(_quoted, (role, *self._around(role, gap=gap))))
            for role in self.begin
        )
        opening = _quoted(self.separator + self.begin["assistant"])
        return _JINJA.format(_quoted(begin), first, _quoted(self.separator), roles, opening)

    def _around(self, role: str, *, gap: str) -> tuple[str, str]:
        """Return the texts before and after a message, with `gap` at each boundary that has no special token."""
        begin, end = self.begin[role], self.end[role]
        special = tuple(self.special_tokens)
        before = "" if not begin or begin.endswith(special) else gap
        after = "" if end.startswith(special) else gap
        behind = "" if not end or end.endswith(special) else gap
        return begin + before, after + end + behind

    def require(self, messages: Sequence[Message]) -> None:
        """Raise an error if the template cannot represent a conversation.

        Raises:
            ValueError: the roles do not alternate, or the template does not support one.
        """
        super().require(messages)
        if "tool" not in self.begin and any(message.role == "tool" for message in messages):
            raise ValueError(
                "this template does not support messages of tools; use one that does, such as "
                "data/template=chatml"
            )

    def _pieces(self, messages: Sequence[Message]) -> Iterator[ConversationPiece]:
        self.require(messages)
        if self.system_message is not None and messages[0].role != "system":
            messages = [Message("system", self.system_message), *messages]
        for index, (role, content, learned) in enumerate(messages):
            is_response = role == "assistant" and learned
            opening = (self.separator if index else "") + self.begin[role]
            yield ConversationPiece(opening, is_template=True, is_response=False)
            yield ConversationPiece(content, is_template=False, is_response=is_response)
            yield ConversationPiece(self.end[role], is_template=True, is_response=is_response)
        if messages[-1].role != "assistant":
            opening = self.separator + self.begin["assistant"]
            yield ConversationPiece(opening, is_template=True, is_response=False)


# Fields: beginning of a text, default system message, separator, roles, beginning of a response.
_JINJA = """\
{{{{- {0} -}}}}
{1}{{%- for message in messages -%}}
{{%- if not loop.first -%}}{{{{- {2} -}}}}{{%- endif -%}}
{3}{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- {4} -}}}}{{%- endif -%}}
"""
_JINJA_SYSTEM = """\
{{%- if messages[0]['role'] != 'system' -%}}{{{{- {0} -}}}}{{%- endif -%}}
"""
_JINJA_ROLE = """\
{{%- if message['role'] == {0} -%}}{{{{- {1} + message['content'] + {2} -}}}}{{%- endif -%}}
"""


def _quoted(text: str) -> str:
    """Return a text as a Jinja literal; Jinja reads the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)


def stored_template(config: DictConfig) -> ChatTemplate | None:
    """Return the template in a run's configuration; None if it has none.

    Raises:
        ConfigError: the template is not valid.
    """
    node = OmegaConf.select(config, "data.template")
    if node is None:
        return None
    trust = OmegaConf.select(config, "trust") or []
    stored = OmegaConf.create({"template": node, "trust": trust})
    # Checked, because a run directory may come from somebody else.
    return check_nodes(stored, {"template": ChatTemplate})["template"]
