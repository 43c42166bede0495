"""The shapes of rows with prompts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from llm.data.examples.messages import (
    get_optional_text,
    get_text,
    is_transcript,
    parse_history,
    parse_messages,
    with_system,
)
from llm.data.examples.template import ChatTemplate, Message

Values = Mapping[str, Any]


class Shape(NamedTuple):
    """A format of a row with a prompt.

    Attributes:
        name: the field that identifies the shape.
        optional: other fields of the prompt.
        read: function that returns the messages of a row.
        response: the field of the response; empty if the response is the last message.
    """

    name: str
    optional: tuple[str, ...]
    read: Callable[[Values, ChatTemplate], list[Message]]
    response: str = ""


def _instruction(values: Values, template: ChatTemplate) -> list[Message]:
    context = get_optional_text(values, "input")
    *before, question = template.messages(get_text(values, "instruction"), context)
    system, history = get_optional_text(values, "system"), parse_history(values.get("history"))
    if system:
        before = [Message("system", system)]
    return [*before, *history, question]


def _messages(values: Values, template: ChatTemplate, *, name: str = "messages") -> list[Message]:
    return with_system(get_optional_text(values, "system"), parse_messages(values[name]))


def _prompt(values: Values, template: ChatTemplate) -> list[Message]:
    prompt = values["prompt"]
    if isinstance(prompt, str) and not is_transcript(prompt):
        prompt = [{"role": "user", "content": get_text(values, "prompt")}]
    return _messages({**values, "prompt": prompt}, template, name="prompt")


MESSAGES = Shape("messages", ("system",), _messages)
CONVERSATIONS = Shape("conversations", ("system",), partial(_messages, name="conversations"))
INSTRUCTION = Shape("instruction", ("input", "system", "history"), _instruction, "output")
PROMPT = Shape("prompt", ("system",), _prompt, "completion")
SHAPES = (MESSAGES, CONVERSATIONS, INSTRUCTION, PROMPT)


def record_shape(values: Values) -> Shape | None:
    """Return the first shape whose field the row has, or None."""
    return next((shape for shape in SHAPES if shape.name in values), None)


def unknown_shape(values: Values, needed: Sequence[str]) -> ValueError:
    """Return the error for a row without a known shape; it proposes names for the fields."""
    missing = [name for name in needed if name not in values]
    theirs = [str(name) for name in values if name not in needed]
    names = theirs if len(theirs) >= len(missing) else ["…"] * len(missing)
    mapping = ", ".join(f"{ours}: {name}" for ours, name in zip(missing, names, strict=False))
    return ValueError(
        f"{missing[0]} is missing; there is {', '.join(map(str, values)) or 'nothing'}: "
        f"'data.columns={{{mapping}}}' would name the fields"
    )
