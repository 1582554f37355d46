"""A real `cdvft serve` in a process of its own, on a free port, and what the tests ask of that process."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import httpx

START_SECONDS = 120


@dataclass
class Server:
    """A running server: its address, its process, and all that it printed."""

    url: str
    process: subprocess.Popen[str]
    log: list[str]

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        text = httpx.get(f"{self.url}/metrics").raise_for_status().text
        values = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M)
        if not values:
            raise KeyError(f"/metrics has no {name}")
        return sum(map(float, values))

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(database: Path, *options: str) -> Server:
    """Start a server on this database and wait until it is ready. Raises RuntimeError with its output if it ends."""
    port = free_port()
    command = [sys.executable, "-m", "cdvft_server.cli", "serve", "--port", str(port), "--database"]
    process = subprocess.Popen(
        [*command, f"sqlite:///{database}", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    server = Server(f"http://127.0.0.1:{port}", process, [])
    ready = _Reader(server).wait_for_ready()
    if not ready:
        process.kill()
        raise RuntimeError("the server did not start:\n" + "".join(server.log))
    return server


class _Reader(Thread):
    """Drains the server's output, so that its pipe never fills."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.start()

    def run(self) -> None:
        stream = self.server.process.stdout
        if stream is not None:
            with stream:
                for line in stream:
                    self.server.log.append(line)

    def wait_for_ready(self) -> bool:
        transport = httpx.HTTPTransport(retries=0)
        with httpx.Client(transport=transport, timeout=START_SECONDS) as client:
            for _ in range(START_SECONDS * 10):
                try:
                    if client.get(f"{self.server.url}/ready").status_code == 200:
                        return True
                except httpx.TransportError:
                    pass
                try:
                    self.server.process.wait(timeout=0.1)
                except subprocess.TimeoutExpired:
                    continue
                self.join()
                return False
        return False


@contextmanager
def running(database: Path, *options: str) -> Iterator[Server]:
    server = start(database, *options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Ask until the condition holds. Raises TimeoutError naming what did not come."""
    asked = Event()
    for _ in range(int(seconds * 20)):
        if condition():
            return
        asked.wait(0.05)
    raise TimeoutError(f"{what}: not within {seconds} s")
