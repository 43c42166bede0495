"""The client of chat completions: requests, retries and error messages."""

import json
import re
import socket
import threading
from contextlib import suppress

import pytest

from llm.evaluation.openai_client import NoAnswerError, OpenAI

HELLO = [{"role": "user", "content": "hello"}]
KEY = "sk-a-secret-that-nobody-sees"


def in_turn(*answers):
    """Reply with the given answers in order, and repeat the last one."""
    left = list(answers)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]


def test_request_follows_the_api(stand_in):
    server = stand_in(lambda request: "hello to you")
    reply = server.judge(seed=7).complete(HELLO)
    assert reply == ("hello to you", "judge-1-served")
    assert server.paths == ["/v1/chat/completions"]
    (request,) = server.requests
    expected = {"model": "judge-1", "messages": HELLO, "temperature": 0.0, "seed": 7}
    assert request == expected | {"max_tokens": 1024, "stream": False}
    assert "Authorization" not in server.headers[0]


def test_options_that_are_none_are_not_sent(stand_in):
    server = stand_in(lambda request: "")
    server.judge(temperature=None, seed=None, max_tokens=None).complete(HELLO)
    assert set(server.requests[0]) == {"model", "messages", "stream"}


@pytest.mark.parametrize(
    "failure", [(500, b"oops", {}), (503, b"", {}), (429, b"{}", {"Retry-After": "0"}), None]
)
def test_temporary_error_is_retried(stand_in, failure):
    server = stand_in(in_turn(failure, failure, "at last"))
    assert server.judge(retries=2).complete(HELLO).text == "at last"
    assert len(server.requests) == 3


def test_a_lasting_server_error_is_reported_in_one_line(stand_in):
    server = stand_in(in_turn((500, b"out of\nmemory\x1b[2J", {})))
    with pytest.raises(
        NoAnswerError, match=r"status 500 \(out of memory\[2J\) in 3 attempts; start its server"
    ) as told:
        server.judge(retries=2).complete(HELLO)
    assert len(server.requests) == 3
    assert str(told.value).isprintable()


def test_client_error_is_not_retried(stand_in):
    server = stand_in(in_turn((404, b'{"error": "model not found"}', {})))
    with pytest.raises(NoAnswerError, match=r"status 404 .*model not found.*; check judge\.model"):
        server.judge().complete(HELLO)
    assert len(server.requests) == 1


def test_wait_doubles_or_follows_retry_after(stand_in, monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    asked = in_turn((500, b"", {}), (429, b"", {"Retry-After": "7"}), (500, b"", {}), "there")
    stand_in(asked).judge(backoff=0.5).complete(HELLO)
    assert waits == [0.5, 7.0, 2.0]


def test_a_silent_server_times_out(stand_in):
    over = threading.Event()
    server = stand_in(lambda request: over.wait(10) and None)
    with pytest.raises(NoAnswerError, match=r"does not answer \(.*timed out.*\) in 2 attempts"):
        server.judge(timeout=0.1, retries=1).complete(HELLO)
    over.set()
    assert len(server.requests) == 2


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 400 No\r\n\r\n"])
def test_a_server_that_sends_a_byte_now_and_then_times_out(head, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    over = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            connection.sendall(head or b"HTTP/1.1 200 ")
            while not over.wait(0.05):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, args=(server,), daemon=True).start()
        judge = OpenAI("j", f"http://127.0.0.1:{server.getsockname()[1]}", timeout=0.5, retries=0)
        with pytest.raises(NoAnswerError, match="timed out: no complete answer"):
            judge.complete(HELLO)
    over.set()


def test_an_address_without_a_server_is_reported(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(
        NoAnswerError,
        match=f"judge.address: {address} does not answer .*; start its server, or use",
    ):
        OpenAI("judge-1", address, retries=1, backoff=0.0).complete(HELLO)


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": "no"}]}']
)
def test_a_malformed_completion_is_reported(stand_in, body):
    server = stand_in(in_turn((200, body, {})))
    with pytest.raises(
        NoAnswerError, match=r"not with a chat completion: .*; use the address of .*ends in /v1"
    ):
        server.judge().complete(HELLO)
    assert len(server.requests) == 1


def test_an_empty_completion_is_reported(stand_in):
    server = stand_in(in_turn((200, json.dumps({"choices": [{"message": {}}]}).encode(), {})))
    assert server.judge().complete(HELLO) == ("", "judge-1")


def test_the_key_is_sent_and_never_shown(stand_in, monkeypatch):
    monkeypatch.setenv("A_KEY", f" {KEY}\n")
    refusal = (401, f"wrong key: {KEY}".encode(), {})
    server = stand_in(in_turn("yes", refusal))
    judge = server.judge(key_variable="A_KEY")
    judge.complete(HELLO)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    with pytest.raises(
        NoAnswerError, match=r"status 401 \(wrong key: …\); name the variable"
    ) as no:
        judge.complete(HELLO)
    shown = repr(judge) + str(no.value) + json.dumps(judge.payload(HELLO))
    assert KEY not in shown


def test_redirect_does_not_send_the_key_elsewhere(stand_in, monkeypatch):
    monkeypatch.setenv("A_KEY", KEY)
    thief = stand_in(lambda request: "thanks")
    server = stand_in(in_turn((302, b"", {"Location": f"{thief.address}/chat/completions"})))
    with pytest.raises(NoAnswerError, match=r"status 302 .*; use the address that it has moved to"):
        server.judge(key_variable="A_KEY").complete(HELLO)
    assert thief.requests == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"address": "localhost:11434/v1"}, "address: 'localhost:11434/v1' is not an http URL"),
        ({"address": "file:///etc/passwd"}, "is not an http URL"),
        ({"key_variable": "NO_SUCH_KEY"}, "key_variable=NO_SUCH_KEY: no such environment variable"),
        ({"timeout": 0}, "timeout=0, "),
        ({"concurrency": 0}, "concurrency >= 1"),
    ],
)
def test_wrong_values_are_named(options, told, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ValueError, match=re.escape(told)):
        OpenAI("judge-1", **options)


@pytest.mark.parametrize(
    "options", [{"key_variable": KEY}, {"address": f"https://me:{KEY}@example.org/v1"}]
)
def test_key_in_the_wrong_option_is_not_printed(options):
    with pytest.raises(ValueError, match="environment variable") as told:
        OpenAI("judge-1", **options)
    assert KEY not in str(told.value)
