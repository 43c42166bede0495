"""The chat template of a published model: Jinja source, rendered as Hugging Face's library does.

It is untrusted code, so it runs in a sandbox in a separate process: see `llm.data.examples.jinja_worker`.
"""

import json
import os
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from llm.data.examples.template import ChatTemplate, Message
from llm.network import call_within
from llm.tokenizers.base import Tokenizer

WORKER = Path(__file__).with_name("jinja_worker.py")
SECONDS = 30.0  # timeout for one text, enough on a busy machine
BYTES = 2**26  # maximum size of a reply
LONGEST = 2**18  # maximum characters of a template; the longest published ones have 30,000
PRIVATE_USE = range(0xE000, 0xF900)  # code points that text rarely has
PROBE = (Message("user", "question"), Message("assistant", "answer"))


class Renderer:
    """A process that renders one template.

    Args:
        source: the Jinja source of the template.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: str | None = None  # the error after which the template is not tried again

    def render(self, values: Mapping[str, Any]) -> str:
        """Render values.

        Raises:
            ValueError: the template cannot be parsed, rejects the values, takes too much time or memory, or writes
                too much text.
        """
        return self._request(self.start(), values)

    def start(self) -> "subprocess.Popen[bytes]":
        """Return the process; start it if it does not run.

        Raises:
            ValueError: the template cannot be parsed.
        """
        if self._failure is not None:
            raise ValueError(self._failure)
        if self._process is not None and self._process.poll() is None:
            return self._process
        # Other variables of the environment may be secret. Ctrl-C does not reach a process in a new session.
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
            self._request(process, self.source)
        except ValueError as error:
            end(process)
            self._failure = str(error)
            raise
        return process

    def _request(self, process: "subprocess.Popen[bytes]", request: Any) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = call_within(SECONDS, partial(process.stdout.readline, BYTES))
            if not line.endswith(b"\n"):
                raise ValueError("takes too much memory or time, or writes too much text")
            reply = json.loads(line)
            if "error" not in reply:
                return str(reply["text"])
        except (OSError, LookupError, TypeError, ValueError) as error:
            end(process)
            self._failure = f"the model's chat template {error or 'fails'}"
            raise ValueError(self._failure) from None
        words = " ".join(str(reply["error"]).split())[:300]
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
        raise ValueError(f"the model's chat template fails: {shown}")


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and close its pipes."""
    with process:
        process.kill()


@lru_cache(maxsize=8)
def renderer(source: str, process_id: int) -> Renderer:
    """Return the renderer of a template in this process."""
    return Renderer(source)


class Hidden:
    """A conversation in which the names of special tokens are replaced, so that they are encoded as plain text.

    Attributes:
        messages: the messages, with each name replaced by its index between two marks.
    """

    def __init__(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
        self.tokenizer = tokenizer
        self.names = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, self.names)) or r"(?!)")
        written = {character for message in messages for character in message.content}
        free = (chr(code) for code in PRIVATE_USE if chr(code) not in written)
        self.mark = next(free, "")
        if not self.mark:
            raise ValueError(
                "the messages contain every character of Unicode's private use area; remove one of them"
            )

        def hide(name: re.Match[str]) -> str:
            return f"{self.mark}{self.names.index(name[0])}{self.mark}"

        self.messages = [
            message._replace(content=self.special.sub(hide, message.content))
            for message in messages
        ]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a rendered text; hidden names are text, other names are special tokens."""
        if self.mark not in text:
            return self.tokenizer.encode(text, special=True)
        hidden = f"{self.mark}([0-9]+){self.mark}"
        tokens: list[int] = []
        for part in re.split(f"({self.special.pattern})", text):
            token = self.tokenizer.special_tokens.get(part)
            shown = re.sub(hidden, lambda match: self.names[int(match[1])], part)
            tokens += self.tokenizer.encode(shown) if token is None else [token]
        return tokens


@dataclass(frozen=True)
class JinjaTemplate(ChatTemplate):
    """A published model's own chat template.

    The name of a special token in a message is encoded as plain text.

    Args:
        source: the template's source, in pieces that are joined.
        tokens: names of special tokens by the variable in the source, such as `bos_token`.

    Raises:
        ValueError: the source cannot be parsed as Jinja.
    """

    source: Sequence[str]
    tokens: Mapping[str, str] = field(default_factory=dict)

    special_tokens = ()  # the model's tokenizer has all of them

    def __post_init__(self) -> None:
        if len(self.text) > LONGEST:
            raise ValueError(f"source: has {len(self.text):,} characters; use at most {LONGEST:,}")
        self._renderer.start()

    @property
    def text(self) -> str:
        """The whole source."""
        return "".join(self.source)

    def messages(self, instruction: str, context: str = "") -> list[Message]:
        """Return an instruction and its input as one message."""
        return [Message("user", "\n\n".join(filter(None, (instruction, context))))]

    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer
    ) -> tuple[list[int], list[bool]]:
        """Return tokens and mask, see `ChatTemplate.encode`; text after the last response is left out.

        Raises:
            ValueError: the roles do not alternate, the template rejects the messages, or a response is not found.
        """
        self.require(messages)
        hidden = Hidden(tokenizer, messages)
        text = self._render(hidden.messages)
        is_prompt = messages[-1].role != "assistant"
        try:
            responses = list(self._responses(hidden, text))
        except ValueError:
            if not is_prompt:
                raise
            responses = []  # a prompt has no response to learn
        if not is_prompt:
            text = text[: responses[-1][1]]
        return _tokens(text, responses, hidden=hidden)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text that `encode` encodes."""
        self.require(messages)
        return self._render(messages)

    def end_token(self, tokenizer: Tokenizer) -> int | None:
        """Return the special token that ends a response, or None."""
        token = self.encode(PROBE, tokenizer)[0][-1]
        return token if token in tokenizer.special_tokens.values() else None

    def end_tokens(self, tokenizer: Tokenizer) -> set[int]:
        """Return the special tokens that the template writes."""
        tokens = self.encode_prompt([*PROBE, PROBE[0]], tokenizer)
        return {*tokens} & {*tokenizer.special_tokens.values()}

    @property
    def stops(self) -> list[str]:
        """The text that ends a response."""
        end = self.render(PROBE).rpartition(PROBE[1].content)[2].strip()
        return [end] if end else []

    def jinja(self, begin: str = "", gap: str = "") -> str:
        """Return the source."""
        return self.text

    @property
    def _renderer(self) -> Renderer:
        return renderer(self.text, os.getpid())

    def _render(self, messages: Sequence[Message]) -> str:
        is_prompt = messages[-1].role != "assistant"
        given = {"messages": [{"role": role, "content": said} for role, said, _ in messages]}
        absent = {"tools": None, "documents": None}
        return self._renderer.render(
            {**self.tokens, **given, **absent, "add_generation_prompt": is_prompt}
        )

    def _responses(self, hidden: Hidden, text: str) -> Iterator[tuple[int, int, bool]]:
        """Yield the start and the end of each response, in characters, and whether it is learned.

        A response starts where its prompt ends, and ends with the first special token after its content.
        """
        for index, (role, content, learned) in enumerate(hidden.messages):
            if role != "assistant":
                continue
            prompt = self._render(hidden.messages[:index])
            same = text.startswith(prompt)
            common = prompt if same else os.path.commonprefix([text, prompt])  # noqa: RUF071 - texts
            start = len(common)
            said = text.find(content.strip(), start)
            if start < len(prompt):
                start = said
            if start < 0:
                raise ValueError(
                    "the chat template does not show where a response begins; use another one"
                )
            behind = start if said < 0 else said + len(content.strip())
            end_token = hidden.special.search(text, behind)
            closed = self._render(hidden.messages[: index + 1]) if end_token is None else ""
            if not text.startswith(closed):
                raise ValueError(
                    "the chat template does not show where a response ends; use another one"
                )
            yield start, end_token.end() if end_token else len(closed), learned


def _tokens(
    text: str, responses: Sequence[tuple[int, int, bool]], *, hidden: Hidden
) -> tuple[list[int], list[bool]]:
    """Return the tokens of a rendered text, and a mask of the responses to learn.

    If a token would span the start or the end of a response, the text is split there, because in generation the prompt
    is encoded without the response.
    """
    edges = [edge for start, end, learned in responses for edge in ((start, False), (end, learned))]
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
