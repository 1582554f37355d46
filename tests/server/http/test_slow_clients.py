"""Clients that read or write slowly: a bounded amount waits for each, nobody else waits, and there is a limit.

The kernel's buffers are made small and fixed, so that what a client does not read stays with the server at once.
"""

import json
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.server.http.harness import WAIT, Fleet, Live, wait_until
from tests.server.http.test_connections import head, refused

SMALL, LARGE = 4096, 1 << 20  # bytes of a socket's buffer; the kernel makes a little more of it
END = b"0\r\n\r\n"
BODY = {"model": "tiny-llama", "prompt": ["a"] * 32, "ignore_eos": True, "max_tokens": 100}
STREAM = json.dumps({**BODY, "stream": True, "temperature": 0}).encode()  # 3,200 events, about half a megabyte


@contextmanager
def connected(live: Live, data: bytes = b"") -> Iterator[socket.socket]:
    address = urlsplit(live.url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        connection.settimeout(WAIT)
        connection.connect((address.hostname, address.port))
        connection.sendall(data)
        yield connection


def small_buffers(live: Live) -> None:
    """For every connection that the server accepts from now on."""
    for listening in live.server.servers[0].sockets:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)


def unsent(live: Live) -> int:
    """Bytes that wait in the server for its clients, most of any connection."""
    waiting = [own.transport.get_write_buffer_size() for own in list(live.server.server_state.connections)]
    return max(waiting, default=0)


def generated_all(live: Live) -> bool:
    return live.gauge("cdvft_generated_tokens_total") >= 3200 and live.gauge("cdvft_requests_running") == 0


def large_buffers(live: Live, client: socket.socket) -> None:
    """For connections that there are: the rest need not take long."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LARGE)
    for own in list(live.server.server_state.connections):
        own.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGE)


def read_all(connection: socket.socket) -> bytes:
    """Up to the end of a chunked answer, or of the connection."""
    data = b""
    while not data.endswith(END):
        piece = connection.recv(1 << 16)
        if not piece:
            break
        data += piece
    return data


def test_a_client_that_does_not_read_holds_a_bounded_buffer_and_nobody_up(tiny_server: Any) -> None:
    live: Live = tiny_server().live
    alone = live.complete("tiny-llama").json()["choices"]
    small_buffers(live)
    with connected(live, head("/v1/completions", len(STREAM)) + STREAM) as slow:
        wait_until(lambda: generated_all(live))  # the engine is done, and the client has read nothing
        assert 0 < unsent(live) < 1 << 17
        assert live.gauge("cdvft_requests_waiting") == 0
        assert live.complete("tiny-llama").json()["choices"] == alone
        large_buffers(live, slow)
        text = read_all(slow)
    assert text.endswith(END)
    assert len(text) > 1 << 17  # far more than waited in any buffer
    assert text.count(b'"finish_reason":"length"') == 32
    assert b"data: [DONE]" in text
    live.wait_until_idle()


def test_a_client_that_never_reads_is_given_up(tiny_server: Any) -> None:
    live: Live = tiny_server(response_wait_seconds=0.2).live
    small_buffers(live)
    with connected(live, head("/v1/completions", len(STREAM)) + STREAM) as slow:
        wait_until(lambda: 'route="/v1/completions",status="200"} 1.0' in live.get("/metrics").text)
        live.wait_until_idle()
        with suppress(ConnectionError):
            assert not read_all(slow).endswith(END)
    assert live.complete("tiny-llama").status_code == 200


def trickle(connection: socket.socket, data: bytes) -> bool:
    """A byte at a time, with pauses far below the limit; whether the server answered before it was all sent."""
    for byte in data:
        if select.select([connection], [], [], 0.01)[0]:
            return True
        connection.sendall(bytes([byte]))
    return False


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/adapters"])
def test_a_body_that_trickles_in_has_a_limit(tiny_server: Any, path: str) -> None:
    """Its pauses are short, but all of them together are too long for what came."""
    fleet: Fleet = tiny_server(request_wait_seconds=0.5)
    kind = "application/json" if path == "/v1/completions" else "multipart/form-data; boundary=XX"
    start = b'{"model": "' if path == "/v1/completions" else b"--XX\r\nContent-Disposition: form-data; name="
    with connected(fleet.live, head(path, 100_000, kind=kind)) as slow:
        assert trickle(slow, start + b"a" * 90_000)
        assert refused(slow)[:2] == (408, "request_timeout")
    fleet.live.wait_until_idle()
