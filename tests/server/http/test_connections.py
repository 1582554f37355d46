"""Below the routes: slow, vanished, malformed and too many clients, over raw sockets."""

import asyncio
import json
import logging
import resource
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cdvft.checkpoint import AdapterFiles, adapter_files
from cdvft_server.connections import AcceptLog, allowed_connections

from tests.server.http.harness import WAIT, Fleet, Live, wait_until
from tests.tiny import random_adapter

COMPLETION = json.dumps({"model": "tiny-llama", "prompt": "a", "max_tokens": 2}).encode()
UPLOAD = b'--XX\r\nContent-Disposition: form-data; name="weights"; filename="w"\r\n\r\n' + b"a" * 3000


def head(path: str, length: int, *lines: str, kind: str = "application/json") -> bytes:
    fields = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", f"Content-Length: {length}", *lines]
    return "\r\n".join([*fields, "", ""]).encode()


def upload_head(length: int) -> bytes:
    return head("/v1/adapters", length, kind="multipart/form-data; boundary=XX")


@contextmanager
def connected(live: Live, data: bytes = b"") -> Iterator[socket.socket]:
    address = urlsplit(live.url)
    with socket.create_connection((address.hostname, address.port), timeout=WAIT) as connection:
        connection.sendall(data)
        yield connection


def answer(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of the one answer that comes before the server closes the connection."""
    data = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    top, _, body = data.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert headers["x-request-id"]
    return int(first.split()[1]), headers, json.loads(body)


def refused(connection: socket.socket) -> tuple[int, str, str]:
    status, headers, body = answer(connection)
    assert headers["content-type"] == "application/json"
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return status, body["error"]["code"], body["error"]["message"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\nabcde", "Content-Length"),
        (
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "Content-Length",
        ),
        (b"GET /health HTTP/1.1\r\n\r\n", "Host"),
        (b"nonsense\r\n\r\n", "illegal request line"),
        (
            head("/v1/completions", 9, "Transfer-Encoding: chunked") + b"0\r\n\r\n",
            "content-length and transfer-encoding",
        ),
    ],
)
def test_what_is_no_http_is_refused_in_the_shape_of_all_errors(decoder: Fleet, data: bytes, words: str) -> None:
    with connected(decoder.live, data) as connection:
        status, code, message = refused(connection)
    assert (status, code) == (400, "invalid_request")
    assert words in message


def test_two_modes_are_refused(decoder: Fleet) -> None:
    modes = [("x-adapter-mode", "fft"), ("x-adapter-mode", "merged")]
    answered = decoder.live.client.post("/v1/completions", json=json.loads(COMPLETION), headers=modes)
    assert answered.status_code == 400
    assert "more than once" in answered.json()["error"]["message"]


def test_a_client_that_pauses_is_not_waited_for(tiny_server: Any) -> None:
    """Within the head, before it, within a body of JSON and within an upload; others are answered meanwhile."""
    live: Live = tiny_server(request_wait_seconds=0.3).live
    slow = [
        b"",
        b"POST /v1/completions HTTP/1.1\r\nHost: loc",
        head("/v1/completions", 900) + COMPLETION,
        upload_head(90_000) + UPLOAD,
    ]
    for data in slow:
        with connected(live, data) as connection:
            assert live.complete("tiny-llama").status_code == 200
            assert refused(connection)[:2] == (408, "request_timeout")
    with connected(live, head("/v1/completions", len(COMPLETION)) + COMPLETION) as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")  # and one that does not pause is served
    live.wait_until_idle()


def test_a_client_that_goes_away_within_a_body_is_no_error(tiny_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    live: Live = tiny_server().live
    with connected(live, upload_head(90_000) + UPLOAD), connected(live, head("/v1/completions", 900) + COMPLETION):
        pass
    counted = ('route="/v1/adapters",status="499"} 1.0', 'route="/v1/completions",status="499"} 1.0')
    wait_until(lambda: all(line in live.get("/metrics").text for line in counted))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert "500" not in "".join(line for line in live.get("/metrics").text.splitlines() if "responses_total" in line)


def test_connections_are_limited(tiny_server: Any) -> None:
    live: Live = tiny_server(max_connections=3).live
    live.client.close()
    with connected(live) as first, connected(live), connected(live):
        with connected(live) as fourth:
            status, headers, body = answer(fourth)
        assert (status, body["error"]["code"]) == (503, "overloaded")
        assert int(headers["retry-after"]) >= 1
        first.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert first.recv(1 << 16).startswith(b"HTTP/1.1 200")
    wait_until(lambda: served_again(live))


def served_again(live: Live) -> bool:
    with connected(live, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") as connection:
        return answer(connection)[0] == 200


def test_connections_are_as_many_as_there_may_be_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert allowed_connections(10) == 10
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        assert allowed_connections(100) == 100  # it takes the files it needs
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_upload_that_finds_no_room_is_503(tiny_server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fleet: Fleet = tiny_server()
    files = adapter_files(random_adapter(fleet.base.info, 1), fleet.base.info)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        refusal = fleet.live.upload("large", AdapterFiles(files.config, files.weights + bytes(2 << 20)))
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "overloaded")
    assert int(refusal.headers["retry-after"]) >= 1
    assert fleet.live.upload("small", files).status_code == 201


def test_a_full_queue_of_connections_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    loop, accept_log = asyncio.new_event_loop(), AcceptLog()
    context = {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many open files")}
    try:
        for _ in range(1000):
            accept_log(loop, context)
        assert [record.getMessage() for record in caplog.records] == [
            "no connection can be accepted: [Errno 24] Too many open files"
        ]
        accept_log(loop, {"message": "something else"})
        assert len(caplog.records) == 2
    finally:
        loop.close()
