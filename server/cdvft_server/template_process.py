"""The process that renders templates, and the frames both ends speak: 4 bytes of length (big-endian), JSON in UTF-8.

Run as a module it is the worker. It imports jinja2 and nothing heavier, and answers one request at a time.
"""

import json
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cdvft.errors import InvalidData
from cdvft.templates import render

__all__ = ["MAX_FRAME_BYTES", "WorkerDied", "encode", "receive", "send"]

MAX_FRAME_BYTES = 64 << 20


class WorkerDied(Exception):
    """The other end is closed."""


def encode(value: Mapping[str, Any]) -> bytes:
    """JSON; lone surrogates, which a client's JSON may hold, pass."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def send(connection: socket.socket, frame: bytes, deadline: float | None) -> None:
    """`deadline` is on the monotonic clock. Raises WorkerDied, TimeoutError."""
    connection.settimeout(None if deadline is None else max(deadline - time.monotonic(), 1e-3))
    try:
        connection.sendall(len(frame).to_bytes(4, "big") + frame)
    except ConnectionError:
        raise WorkerDied from None


def receive(connection: socket.socket, deadline: float | None) -> dict[str, Any]:
    """One frame's value. Raises WorkerDied, also for a frame that is too long, and TimeoutError."""
    length = int.from_bytes(_receive_bytes(connection, 4, deadline), "big")
    if length > MAX_FRAME_BYTES:
        raise WorkerDied
    value: dict[str, Any] = json.loads(_receive_bytes(connection, length, deadline).decode("utf-8", "surrogatepass"))
    return value


def _receive_bytes(connection: socket.socket, length: int, deadline: float | None) -> bytes:
    chunks = []
    while length:
        connection.settimeout(None if deadline is None else max(deadline - time.monotonic(), 1e-3))
        try:
            chunk = connection.recv(min(length, 1 << 20))
        except ConnectionError:
            chunk = b""
        if not chunk:
            raise WorkerDied
        chunks.append(chunk)
        length -= len(chunk)
    return b"".join(chunks)


def _work(connection: socket.socket, timeout: float, memory_bytes: int, output_bytes: int) -> None:
    """The worker's loop: ends when the other end is closed, or by SIGPROF when a template's time is over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for limit, value in _process_limits(memory_bytes).items():
        resource.setrlimit(limit, (value, value))
    with suppress(WorkerDied, MemoryError):
        send(connection, encode({"ready": True}), None)
        while True:
            send(connection, _rendered(receive(connection, None), timeout, output_bytes), None)


def _process_limits(memory_bytes: int) -> dict[int, int]:
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    return limits | {resource.RLIMIT_AS: memory_bytes} if sys.platform == "linux" else limits


def _rendered(call: dict[str, Any], timeout: float, output_bytes: int) -> bytes:
    try:
        signal.setitimer(signal.ITIMER_PROF, timeout)
        try:
            prompt = render(call.pop("source"), call.pop("messages"), **call)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        size = len(prompt.encode("utf-8", "surrogatepass"))
        if size <= output_bytes:
            return encode({"prompt": prompt})
        reason = f"the chat template wrote {size} bytes, at most {output_bytes} are allowed (--max-template-bytes)"
    except MemoryError:
        reason = "the chat template needs too much memory"
    except InvalidData as error:
        reason = str(error)
    return encode({"error": reason})


if __name__ == "__main__":
    _work(socket.socket(fileno=int(sys.argv[1])), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
