"""A local server of chat completions that records its requests."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class StandIn:
    """A server that replies with `answer(request)`: a text, or (status, body, headers) of an error."""

    answer: Callable[[dict[str, Any]], Any]
    address: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def judge(self, **options: Any) -> Any:
        from llm.evaluation.openai_client import OpenAI  # late, so that its shapes are checked

        return OpenAI("judge-1", self.address, **{"backoff": 0.0, "timeout": 5.0, **options})


@pytest.fixture
def stand_in(monkeypatch) -> Iterator[Callable[..., StandIn]]:
    """stand_in(answer): a server in its own thread, stopped after the test."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(answer: Callable[[dict[str, Any]], Any]) -> StandIn:
        stand_in = StandIn(answer)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.requests.append(request)
                stand_in.headers.append(dict(self.headers))
                stand_in.paths.append(self.path)
                answer = stand_in.answer(request)
                if answer is None:  # close the connection without a reply
                    return
                status, body, headers = (
                    answer if isinstance(answer, tuple) else (200, completion(answer), {})
                )
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        stand_in.address = f"http://127.0.0.1:{server.server_port}/v1"
        return stand_in

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def completion(text: str | None) -> bytes:
    """Return the body of a reply, as the API describes it."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    reply = {"id": "1", "object": "chat.completion", "model": "judge-1-served", "choices": [choice]}
    return json.dumps(reply).encode()
