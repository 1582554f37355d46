"""Both clients behind one synchronous face, a scripted transport, and a server on real sockets."""

import asyncio
import inspect
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import httpx
from cdvft_client import AsyncClient, AsyncStream

DIGEST = "sha256:" + "ab" * 32
HEADERS = {
    "x-request-id": "req-1",
    "x-adapter": "reviews",
    "x-adapter-version": "2",
    "x-adapter-digest": DIGEST,
    "x-adapter-mode": "fft",
}
COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1700000000,
    "model": "reviews",
    "choices": [{"index": 0, "text": " a cat", "finish_reason": "stop", "logprobs": None}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


def adapter_body(name: str = "reviews", version: int = 2) -> dict[str, Any]:
    return {
        "id": name,
        "object": "adapter",
        "name": name,
        "version": version,
        "digest": DIGEST,
        "method": "cdvft",
        "base_model": "cdvft-tiny",
        "base_verified": True,
        "task": "classification",
        "labels": ["bad", "good"],
        "num_parameters": 1536,
        "head_parameters": 514,
        "bytes": 9000,
        "sites": ["layers.0.self_attn.q_proj"],
        "aliases": {"latest": 2, "prod": 1},
        "public": False,
        "created_at": 1700000000,
        "self_test": {"max_error": 1e-6},
        "ignored_files": ["README.md"],
    }


def error_body(code: str, message: str = "what was wrong", param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "some_error", "param": param, "code": code}}


class Script:
    """A transport handler that gives its steps in turn: a response, or an exception to raise."""

    def __init__(self, *steps: httpx.Response | Exception) -> None:
        self.steps = list(steps)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self)

    @property
    def sent(self) -> Any:
        """The only request's JSON body."""
        (request,) = self.requests
        return json.loads(request.content)


class Blocking:
    """An AsyncClient that is called like a Client."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return (lambda *args, **kw: self._plain(found(*args, **kw))) if callable(found) else found

    def _plain(self, value: Any) -> Any:
        if inspect.iscoroutine(value):
            return self._runner.run(value)
        if isinstance(value, AsyncStream):
            return BlockingStream(value, self._runner)
        return _items(value, self._runner)

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()


class BlockingStream:
    def __init__(self, stream: AsyncStream, runner: asyncio.Runner) -> None:
        self.stream, self._runner = stream, runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __iter__(self) -> Iterator[Any]:
        return _items(self.stream, self._runner)

    def __next__(self) -> Any:
        return next(iter(self))

    def __enter__(self) -> Self:
        self._runner.run(_enter(self.stream))
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._runner.run(self.stream.aclose())


async def _enter(stream: AsyncStream) -> None:
    await stream.__aenter__()


def _items(items: Any, runner: asyncio.Runner) -> Iterator[Any]:
    async def following() -> Any:
        return await anext(items)

    while True:
        try:
            item = runner.run(following())
        except StopAsyncIteration:
            return
        yield item


class Connection:
    """One request that came in over a socket, and the means to answer it byte by byte."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.request = b""
        while b"\r\n\r\n" not in self.request:
            self.request += channel.recv(65536)
        head, _, body = self.request.partition(b"\r\n\r\n")
        length = next((int(h[15:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")), 0)
        while len(body) < length:
            piece = channel.recv(65536)
            body, self.request = body + piece, self.request + piece

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.channel.sendall(piece)

    def stream(self, *pieces: bytes) -> None:
        """Begins an event stream, with `pieces` each in a chunk of its own."""
        head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
        self.send(
            f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n{head}\r\n".encode()
        )
        self.send(*(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces))

    def end(self) -> None:
        """Ends a stream as HTTP wants it."""
        self.send(b"0\r\n\r\n")

    def answer(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (len(content), content))

    def wait_gone(self) -> None:
        """Until the client has closed the connection."""
        try:
            while self.channel.recv(65536):
                pass
        except ConnectionError:
            pass


class LiveServer:
    """Answers each connection with the next of `steps`; `gone` is set when the last step has returned."""

    def __init__(self, *steps: Callable[[Connection], None]) -> None:
        left, outer = list(steps), self
        self.gone = threading.Event()
        self.connections = 0

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                outer.connections += 1
                left.pop(0)(Connection(self.request))
                if not left:
                    outer.gone.set()

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = False
            request_queue_size = 64

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def events(*data: dict[str, Any] | str) -> Iterable[bytes]:
    return [f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n".encode() for item in data]


def text_chunk(text: str, finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": finish_reason}
    return {"id": "cmpl-1", "created": 1700000000, "model": "reviews", "choices": [choice]}
