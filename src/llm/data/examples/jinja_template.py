"""The chat template of a published model: a text in Jinja, rendered as Hugging Face's library does.

It is a stranger's program, so it runs in a sandbox in a process of its own, see `llm.data.examples.jinja_worker`.
"""

import json
import os
import re
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

from llm.data.examples.template import ChatTemplate, Message, require_order, require_question
from llm.tokenizers.base import Tokenizer

WORKER = Path(__file__).with_name("jinja_worker.py")
SECONDS = 30.0  # for one text, on a busy machine too
BYTES = 2**26  # of an answer
LONGEST = 2**18  # characters of a template; the longest that are published have 30 thousand
PRIVATE_USE = range(0xE000, 0xF900)  # characters that no text has
PROBE = (Message("user", "question"), Message("assistant", "answer"))


class Renderer:
    """A process that renders one template, started when it is needed first.

    Args:
        source: the template.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: str | None = None  # of a template that is not asked again

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the text that the template makes of some values.

        Raises:
            ValueError: it cannot be read, refuses them, or takes too long, too much memory or too many
                characters.
        """
        return self._ask(self._start(), values)

    def check(self) -> None:
        """Let pass a template that can be read.

        Raises:
            ValueError: it cannot.
        """
        self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        if self._failure is not None:
            raise ValueError(self._failure)
        if self._process is not None and self._process.poll() is None:
            return self._process
        # No environment but where modules are found: it may hold secrets. A session of its own, which the
        # terminal's Ctrl-C does not reach.
        kept = {name: os.environ[name] for name in ("PYTHONPATH", "PATH") if name in os.environ}
        self._process = process = subprocess.Popen(
            [sys.executable, "-P", "-B", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**kept, "PYTHONIOENCODING": "utf-8"},
        )
        weakref.finalize(self, end, process)
        try:
            self._ask(process, self.source)
        except ValueError as error:
            end(process)
            self._failure = str(error)
            raise
        return process

    def _ask(self, process: "subprocess.Popen[bytes]", request: Any) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            answer = json.loads(read_line(process.stdout, SECONDS))
            if "error" not in answer:
                return str(answer["text"])
        except (OSError, LookupError, TypeError, ValueError) as error:
            end(process)
            self._failure = f"the model's chat template {error or 'fails'}"
            raise ValueError(self._failure) from None
        words = " ".join(str(answer["error"]).split())[:300]
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
        raise ValueError(f"the model's chat template fails: {shown}")


def end(process: "subprocess.Popen[bytes]") -> None:
    """Stop a process and forget it."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def read_line(stream: IO[bytes], seconds: float) -> bytes:
    """A line that another process writes, if it comes in time.

    Raises:
        TimeoutError: it does not.
        ValueError: it is too long, or the process ended.
    """
    deadline = time.monotonic() + seconds
    line = bytearray()
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"takes more than {seconds:.0f} seconds")
        part = os.read(stream.fileno(), 2**16)
        if not part or len(line) > BYTES:
            raise ValueError("takes too much memory, time or text")
        line += part
    return bytes(line)


@lru_cache(maxsize=8)
def renderer(source: str, process_id: int) -> Renderer:
    """Return the renderer of a template; in a process that was forked another one."""
    return Renderer(source)


class Hidden:
    """The names of special tokens inside people's messages, hidden from the template and the tokenizer.

    Args:
        tokenizer: whose special tokens they are.
        messages: what people wrote.
    """

    def __init__(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
        self.tokenizer = tokenizer
        self.names = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, self.names)) or r"(?!)")
        written = {character for message in messages for character in message.content}
        free = (chr(code) for code in PRIVATE_USE if chr(code) not in written)
        self.mark = next(free, "")
        if not self.mark:
            raise ValueError("the messages hold every character of Unicode's private use area")

    def hide(self, message: Message) -> Message:
        """Return the message with a number between two marks in place of each name."""

        def number(match: re.Match[str]) -> str:
            return f"{self.mark}{self.names.index(match[0])}{self.mark}"

        return message._replace(content=self.special.sub(number, message.content))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a rendered text: the template's names are special tokens, hidden ones are not."""
        if self.mark not in text:
            return self.tokenizer.encode(text, special=True)
        tokens: list[int] = []
        for part in re.split(f"({self.special.pattern})", text):
            token = self.tokenizer.special_tokens.get(part)
            tokens += self.tokenizer.encode(self._shown(part)) if token is None else [token]
        return tokens

    def _shown(self, text: str) -> str:
        hidden = f"{self.mark}([0-9]+){self.mark}"
        return re.sub(hidden, lambda match: self.names[int(match[1])], text)


class AnswerSpan(NamedTuple):
    """Where an answer stands in a rendered text.

    Attributes:
        start: where it begins.
        end: where it ends, with what ends it.
        learned: whether it is learned.
    """

    start: int
    end: int
    learned: bool


@dataclass(frozen=True)
class JinjaTemplate(ChatTemplate):
    """A published model's own chat template.

    What people wrote cannot forge the tokens of the template: the name of a special token inside a message is
    encoded as plain text.

    Args:
        source: the template's source, in pieces that are joined.
        tokens: names of special tokens that the source refers to, such as `bos_token`.

    Raises:
        ValueError: the source cannot be read as Jinja.
    """

    source: Sequence[str]
    tokens: Mapping[str, str] = field(default_factory=dict)

    special_tokens = ()  # the model's tokenizer has them all

    def __post_init__(self) -> None:
        if len(self.text) > LONGEST:
            raise ValueError(
                f"source: {len(self.text):,} characters are more than a chat template has ({LONGEST:,})"
            )
        self._renderer.check()

    @property
    def text(self) -> str:
        """The whole source."""
        return "".join(self.source)

    def messages(self, instruction: str, context: str = "") -> list[Message]:
        """Return an instruction, and an input that it is about, as one message."""
        return [Message("user", "\n\n".join(filter(None, (instruction, context))))]

    def require(self, messages: Sequence[Message]) -> None:
        """Refuse a conversation whose roles do not alternate; what else it refuses, the template says.

        Raises:
            ValueError: they do not.
        """
        require_order(messages)

    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer
    ) -> tuple[list[int], list[bool]]:
        """As `ChatTemplate.encode`; what the template writes behind a last answer is left out.

        Raises:
            ValueError: the roles do not alternate, the template refuses the messages, or it does not say
                where an answer begins or ends.
        """
        require_order(messages)
        hidden = Hidden(tokenizer, messages)
        messages = [hidden.hide(message) for message in messages]
        text = self._render(messages)
        answers = list(self._answers(messages, text, special=hidden.special))
        if messages[-1].role == "assistant":
            text = text[: answers[-1].end]
        return _tokens(text, answers, hidden=hidden)

    def encode_prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """As `ChatTemplate.encode_prompt`.

        Raises:
            ValueError: as `encode`, or the last message is not the user's.
        """
        require_order(messages)
        require_question(messages)
        hidden = Hidden(tokenizer, messages)
        messages = [hidden.hide(message) for message in messages]
        text = self._render(messages)
        try:
            answers = list(self._answers(messages, text, special=hidden.special))
        except ValueError:  # nothing is learned from them here
            answers = []
        return _tokens(text, answers, hidden=hidden)[0]

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text of a conversation; after a user's message, up to where the assistant begins.

        Raises:
            ValueError: the roles do not alternate, or the template refuses the messages.
        """
        require_order(messages)
        return self._render(messages)

    def ordinary_text(self, messages: Sequence[Message]) -> str:
        """Return what `render` does: the tokenizer of a published model is never fitted to it."""
        return self.render(messages)

    def end_token(self, tokenizer: Tokenizer) -> int | None:
        """The token that ends an answer; None if it is not one special token."""
        token = self.encode(PROBE, tokenizer)[0][-1]
        return token if token in tokenizer.special_tokens.values() else None

    def end_tokens(self, tokenizer: Tokenizer) -> set[int]:
        """The special tokens that the template writes."""
        tokens = self.encode_prompt([*PROBE, PROBE[0]], tokenizer)
        return {*tokens} & {*tokenizer.special_tokens.values()}

    @property
    def stops(self) -> list[str]:
        """The text that ends an answer."""
        end = self.render(PROBE).rpartition(PROBE[1].content)[2].strip()
        return [end] if end else []

    def jinja(self, begin: str = "", gap: str = "") -> str:
        """The source."""
        return self.text

    @property
    def _renderer(self) -> Renderer:
        return renderer(self.text, os.getpid())

    def _render(self, messages: Sequence[Message]) -> str:
        """The text of messages; after a user's, with the beginning of an answer."""
        is_prompt = messages[-1].role != "assistant"
        given = {"messages": [{"role": role, "content": said} for role, said, _ in messages]}
        absent = {"tools": None, "documents": None}
        return self._renderer.render(
            {**self.tokens, **given, **absent, "add_generation_prompt": is_prompt}
        )

    def _answers(
        self, messages: Sequence[Message], text: str, *, special: re.Pattern[str]
    ) -> Iterator[AnswerSpan]:
        """Where each answer begins in a rendered text, and where it ends, its end included.

        It begins where a prompt would end, and ends with the first special token after what it says.
        """
        for index, (role, content, learned) in enumerate(messages):
            if role != "assistant":
                continue
            prompt = self._render(messages[:index])
            start = _common(text, prompt)
            said = text.find(content.strip(), start)
            if start < len(prompt):
                start = said
            if start < 0:
                raise ValueError("the model's chat template does not say where an answer begins")
            found = special.search(text, said + len(content.strip()) if said >= 0 else start)
            end = found.end() if found else self._end(messages[: index + 1], text)
            yield AnswerSpan(start, end, learned)

    def _end(self, messages: Sequence[Message], text: str) -> int:
        """Where the last of some messages ends in a rendered text."""
        closed = self._render(messages)
        if not text.startswith(closed):
            raise ValueError("the model's chat template does not say where an answer ends")
        return len(closed)


def _common(text: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    if text.startswith(other):
        return len(other)
    pairs = enumerate(zip(text, other, strict=False))
    return next((at for at, (ours, theirs) in pairs if ours != theirs), len(text))


def _tokens(
    text: str, answers: Sequence[AnswerSpan], *, hidden: Hidden
) -> tuple[list[int], list[bool]]:
    """The tokens of a rendered text, and which belong to answers.

    They are those of the text as a whole where its tokens keep to the edges of the answers. Elsewhere the parts
    are encoded one by one: a model that answers continues the tokens of a prompt, whatever follows.
    """
    edges = [edge for start, end, learned in answers for edge in ((start, False), (end, learned))]
    tokens: list[int] = []
    is_response: list[bool] = []
    before = 0
    for edge, learned in [*edges, (len(text), False)]:
        new = hidden.encode(text[:edge])
        if new[: len(tokens)] != tokens:
            new = [*tokens, *hidden.encode(text[before:edge])]
        is_response += [learned] * (len(new) - len(tokens))
        tokens, before = new, edge
    return tokens, is_response
