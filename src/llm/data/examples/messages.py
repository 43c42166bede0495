"""Messages from rows, in the formats of other libraries."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from llm.data.examples.template import Message, Role

# Names of the roles in other formats.
SPEAKERS: dict[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "developer": "system",
    "observation": "tool",
    "function": "tool",
    "function_call": "assistant",
}
KEYS = (("role", "content"), ("from", "value"))
READ = {"role", "content", "from", "value", "weight"}  # keys of a message that are used
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")


def parse_messages(found: Any) -> list[Message]:
    """Return the messages of a list of objects with role and content (or from and value), or of a transcript.

    A blank system message is left out. A response is not learned if its weight is 0, or if it is a tool call: a blank
    message before that of a tool.

    Raises:
        ValueError: the value is neither, or a message is malformed.
    """
    if isinstance(found, str) and is_transcript(found):
        return parse_transcript(found)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError("a list of objects with role and content is needed")
    speakers = [_speaker(item) for item in found]
    messages = []
    for item, speaker, following in zip(found, speakers, [*speakers[1:], ""], strict=False):
        is_call = speaker == "assistant" and following == "tool"
        content = get_content(item, may_be_blank=is_call or speaker == "system")
        if content or speaker != "system":
            learned = bool(content) and _weight(item) != 0
            messages.append(Message(speaker, content, learned))
    return messages


def _speaker(item: Mapping[str, Any]) -> Any:
    role, _ = _keys(item)
    speaker = get_text(item, role)
    return SPEAKERS.get(speaker, speaker)


def _keys(item: Mapping[str, Any]) -> tuple[str, str]:
    return next((keys for keys in KEYS if keys[0] in item), KEYS[0])


def _weight(item: Mapping[str, Any]) -> float:
    weight = item.get("weight")
    if weight not in (None, 0, 1):
        raise ValueError(f"weight is {weight!r}, not 0 or 1")
    return 1 if weight is None else weight


def get_content(item: Mapping[str, Any], *, may_be_blank: bool = False) -> str:
    """Return the content of a message: a text, or a list of text parts, which are joined.

    Raises:
        ValueError: the content is something else, or is blank and may not be.
    """
    _, key = _keys(item)
    parts = item.get(key)
    if isinstance(parts, list):
        item = {key: "".join(_text_of_part(part, key) for part in parts)}
    elif parts is None and item.get("tool_calls") and not may_be_blank:
        raise ValueError("a tool call is not text, so it cannot be learned; remove the row")
    return get_optional_text(item, key) if may_be_blank else get_text(item, key)


def _text_of_part(part: Any, key: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    if kind != "text":
        raise ValueError(f"{key} has parts of type {kind}, not text alone")
    return get_text(part, "text")


def is_transcript(text: str) -> bool:
    """Return whether a text is a transcript: `Human: …` and `Assistant: …`, separated by blank lines."""
    speakers = [turn[1] for turn in TURN.finditer(text)]
    return TURN.match(text) is not None and speakers[:2] == ["Human", "Assistant"]


def parse_transcript(text: str) -> list[Message]:
    """Return the messages of a transcript; an assistant's blank last turn is left out.

    Raises:
        ValueError: a turn is blank.
    """
    _, *pieces = TURN.split(text)
    turns = list(zip(pieces[::2], (piece.strip() for piece in pieces[1::2]), strict=True))
    if turns[-1] == ("Assistant", ""):
        turns.pop()
    if not all(content for _, content in turns):
        raise ValueError("a turn of the transcript is empty")
    return [Message(SPEAKERS.get(who.lower(), "assistant"), said) for who, said in turns]


def with_system(system: str, messages: Sequence[Message]) -> list[Message]:
    """Put the system message of a separate field before the messages.

    Raises:
        ValueError: the messages begin with another system message.
    """
    if not system or (messages and messages[0] == Message("system", system)):
        return list(messages)
    if messages and messages[0].role == "system":
        raise ValueError("system is given twice: as a field and as the first message; remove one")
    return [Message("system", system), *messages]


def parse_history(found: Any) -> list[Message]:
    """Return the messages of earlier turns, a list of pairs of instruction and response.

    Raises:
        ValueError: the value is not such a list.
    """
    turns = found or []
    if not isinstance(turns, list) or not all(isinstance(t, list) and len(t) == 2 for t in turns):
        raise ValueError("history is not a list of pairs of an instruction and a response")
    texts = [get_text({"history": text}, "history") for turn in turns for text in turn]
    return [Message("assistant" if at % 2 else "user", text) for at, text in enumerate(texts)]


def unused_fields(values: Mapping[str, Any], used: Collection[str]) -> Iterator[str]:
    """Yield the fields of a row and of its messages that have a value but are not read."""
    for name, value in values.items():
        if name not in used:
            yield from () if is_blank(value) else (name,)
        elif isinstance(value, list):
            items = [item for item in value if isinstance(item, dict)]
            keys = {key for item in items for key in item if not is_blank(item[key])}
            yield from (f"{name}.{key}" for key in sorted(keys - READ))


def is_blank(value: Any) -> bool:
    """Return whether a value is white space, null, 0, false, or an empty list or object."""
    return not (value.strip() if isinstance(value, str) else value)


def get_text(values: Mapping[str, Any], key: str) -> str:
    """Return the text under a key.

    Raises:
        ValueError: the text is missing or blank.
    """
    if key not in values:
        there = ", ".join(map(str, values)) or "nothing"
        raise ValueError(
            f"{key} is missing; there is {there}: 'data.columns={{{key}: …}}' names another field"
        )
    text = values[key]
    if not isinstance(text, str):
        raise ValueError(f"{key} is {type(text).__name__}, not text")
    if not text.strip():
        raise ValueError(f"{key} is empty")
    return text


def get_optional_text(values: Mapping[str, Any], key: str) -> str:
    """Return the text under a key; empty if it is missing or blank.

    Raises:
        ValueError: the value is not text.
    """
    return "" if is_blank(values.get(key)) else get_text(values, key)
