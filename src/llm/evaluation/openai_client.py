"""A client for a model behind an OpenAI-compatible API: OpenAI, Ollama, vLLM, llama.cpp."""

import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, HTTPMessage
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from llm.config.errors import UserError
from llm.network import call_within

SERVER_DOWN = "; start its server, or use another judge.address"
WRONG_REQUEST = "; check judge.model, and judge.address, which usually ends in /v1"
REMEDIES = {
    **dict.fromkeys((301, 302, 307, 308), "; use the address that it has moved to"),
    401: "; name the variable of your key in judge.key_variable",
    429: "; use a lower judge.concurrency, or try again later",
}
LARGEST_REPLY = 2**20  # bytes
LONGEST_WAIT = 60.0  # seconds, even if a server requests more


class NoAnswerError(UserError):
    """The server gives no chat completion."""


class RefusedError(Exception):
    """A server answers with an error status.

    Args:
        problem: the server's message.
        code: the status; 0 if there is no answer.
        wait: seconds until the next attempt, if the server requests a wait.
    """

    def __init__(self, problem: str, code: int = 0, wait: str = "") -> None:
        super().__init__(problem)
        self.code, self.wait = code, wait


class Reply(NamedTuple):
    """A model's reply, which may be empty, and the model's name as the server reports it."""

    text: str
    model: str


@dataclass(frozen=True)
class OpenAI:
    """A client of the chat completions API.

    Retries after too many requests (429), server errors (5xx), timeouts and broken connections. Does not follow
    redirects, which would send the key elsewhere. The key is never written to configurations, files or messages.

    Args:
        model: name of the model on the server.
        address: base URL of the API, up to `/v1`.
        key_variable: environment variable with the key; None sends no key.
        temperature: 0 always takes the most likely token; None leaves it to the server.
        seed: seed, for servers that support it; None sends none.
        max_tokens: maximum length of a reply, in tokens; None leaves it to the server.
        timeout: seconds for a complete reply.
        retries: attempts after the first.
        backoff: seconds before the second attempt, doubled for each further one unless the server requests a wait.
        concurrency: number of simultaneous requests.
    """

    model: str
    address: str = "http://localhost:11434/v1"
    key_variable: str | None = None
    temperature: float | None = 0.0
    seed: int | None = 0
    max_tokens: int | None = 1024
    timeout: float = 120.0
    retries: int = 3
    backoff: float = 1.0
    concurrency: int = 4

    def __post_init__(self) -> None:
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"address: {self.address!r} is not an http URL; use one up to /v1, such as {OpenAI.address}"
            )
        if parts.username or parts.password:
            raise ValueError(
                "address: contains a password; put it into an environment variable and name that in key_variable"
            )
        if self.timeout <= 0 or self.retries < 0 or self.backoff < 0 or self.concurrency < 1:
            raise ValueError(
                f"timeout={self.timeout}, retries={self.retries}, backoff={self.backoff}, concurrency="
                f"{self.concurrency}: out of range; use timeout > 0, concurrency >= 1, retries >= 0 and backoff >= 0"
            )
        self.headers()

    def headers(self) -> dict[str, str]:
        """Return the headers of a request, including the key.

        Raises:
            ValueError: the key's variable is not set to a key.
        """
        headers = {"Content-Type": "application/json"}
        if self.key_variable is None:
            return headers
        if not re.fullmatch(r"[A-Za-z_]\w*", self.key_variable):
            raise ValueError("key_variable: give the name of an environment variable, not the key")
        key = os.environ.get(self.key_variable, "").strip()
        if not re.fullmatch(r"[!-~]+", key):
            raise ValueError(
                f"key_variable={self.key_variable}: no such environment variable is set to a key; "
                "set it, or leave key_variable out if the server requires none"
            )
        return headers | {"Authorization": f"Bearer {key}"}

    def payload(self, messages: Sequence[dict[str, str]]) -> dict[str, Any]:
        """Return the body of a request, without the key."""
        names = ("temperature", "seed", "max_tokens")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {"model": self.model, "messages": list(messages), **given, "stream": False}

    def complete(self, messages: Sequence[dict[str, str]]) -> Reply:
        """Return the model's reply to a conversation.

        Args:
            messages: each with `role` and `content`.

        Raises:
            NoAnswerError: all attempts failed.
        """
        payload, refused = self.payload(messages), RefusedError("")
        for attempt in range(self.retries + 1):
            try:
                return self._read(call_within(self.timeout, partial(self._post, payload)))
            except RefusedError as error:
                refused = error
            except (OSError, HTTPException) as error:
                refused = RefusedError(f"{self._key} does not answer ({_one_line(error)})")
            if refused.code and refused.code not in (408, 429) and refused.code < 500:
                raise NoAnswerError(f"{refused}{REMEDIES.get(refused.code, WRONG_REQUEST)}")
            if attempt < self.retries:
                wait = refused.wait
                seconds = float(wait) if wait.isdecimal() else self.backoff * 2**attempt
                time.sleep(min(seconds, LONGEST_WAIT))
        attempts = self.retries + 1
        tried = f" in {attempts} attempts" if attempts > 1 else ""
        raise NoAnswerError(f"{refused}{tried}{REMEDIES.get(refused.code, SERVER_DOWN)}")

    def _post(self, payload: dict[str, Any]) -> bytes:
        request = Request(
            f"{self.address.rstrip('/')}/chat/completions",
            data=json.dumps(payload).encode(),
            headers=self.headers(),
        )
        try:
            with build_opener(_NoRedirects).open(request, timeout=self.timeout) as response:
                return response.read(LARGEST_REPLY)
        except HTTPError as error:
            wait = error.headers.get("Retry-After", "")
            raise RefusedError(self._explain(error), error.code, wait) from None

    def _read(self, body: bytes) -> Reply:
        """Return the reply in the body of an HTTP response."""
        try:
            reply = json.loads(body)
            text = reply["choices"][0]["message"].get("content") or ""
        except (ValueError, LookupError, TypeError, AttributeError):
            received = _one_line(body.decode(errors="replace")) or "an empty reply"
            raise NoAnswerError(
                f"{self._key} answers, but not with a chat completion: {received}; use the address of an "
                "OpenAI-compatible API, which usually ends in /v1"
            ) from None
        return Reply(str(text), str(reply.get("model", self.model)))

    def _explain(self, error: HTTPError) -> str:
        """Return the server's message, without the key, which some servers repeat."""
        body = ""
        with suppress(OSError, HTTPException):  # the connection may break while reading
            body = error.read(LARGEST_REPLY).decode(errors="replace")
        authorization = self.headers().get("Authorization", "")
        key = authorization.removeprefix("Bearer ")
        reason = _one_line(body.replace(key, "…") if key else body)
        return f"{self._key} refuses with status {error.code} ({reason or error.reason})"

    @property
    def _key(self) -> str:
        return f"judge.address: {self.address}"


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(  # noqa: PLR0917
        self, req: Request, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def _one_line(message: object) -> str:
    line = " ".join(str(message).split())
    return "".join(letter for letter in line if letter.isprintable())[:200]
