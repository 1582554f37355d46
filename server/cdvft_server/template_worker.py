"""Renders chat templates, which are somebody's code, in processes that can be killed. Knows no tokenizer, no HTTP."""

import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from cdvft.errors import InvalidData

from cdvft_server.exceptions import TemplateWorkerFailed
from cdvft_server.template_process import MAX_FRAME_BYTES, WorkerDied, encode, receive, send

__all__ = ["TemplateWorkers"]

START_SECONDS = 60.0
WALL_FACTOR = 10


class TemplateWorkers:
    """`count` worker processes. A template gets `timeout` seconds of its worker's processor time, and ten times that
    by the clock (so that a busy machine fails no honest template), and `memory_bytes` of address space. What it writes
    may have `output_bytes`.
    Starting a worker is not counted. Raises TemplateWorkerFailed where no process can be started.
    """

    def __init__(
        self, count: int = 1, timeout: float = 0.2, memory_bytes: int = 256 << 20, output_bytes: int = 1 << 20
    ) -> None:
        if count < 1 or timeout <= 0:
            raise ValueError(f"template workers need count >= 1 and timeout > 0, not {count} and {timeout}")
        self._timeout = timeout
        self._closed = False
        self._workers = [_Worker(timeout, memory_bytes, output_bytes) for _ in range(count)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        try:
            for worker in self._workers:
                worker.start()
        except TemplateWorkerFailed:
            self.close()
            raise

    def render(
        self,
        source: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        bos_token: str | None,
        eos_token: str | None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt, as `cdvft.templates.render`. Thread-safe; waits for an idle worker.

        Raises InvalidData where the template fails or takes too much time or memory; TemplateWorkerFailed where no
        worker starts, or after `close`.
        """
        call = {
            "source": source,
            "messages": list(messages),
            "bos_token": bos_token,
            "eos_token": eos_token,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            frame = encode(call)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidData(f"the messages cannot be written as JSON: {error}") from None
        if len(frame) > MAX_FRAME_BYTES:
            raise InvalidData(f"the messages are longer than a chat template may take ({MAX_FRAME_BYTES} bytes)")
        answer = self._answer(frame)
        if "prompt" in answer:
            return str(answer["prompt"])
        raise InvalidData(str(answer["error"]))

    def _answer(self, frame: bytes) -> dict[str, Any]:
        with suppress(WorkerDied):  # perhaps while it was idle, and not of this template: another try
            return self._exchange(frame)
        try:
            return self._exchange(frame)
        except WorkerDied:
            raise InvalidData("the chat template ended its worker process: too much memory or recursion") from None

    def _exchange(self, frame: bytes) -> dict[str, Any]:
        worker = self._idle.get()
        try:
            if self._closed:
                raise TemplateWorkerFailed("the template workers are closed")
            return worker.ask(frame)
        except TimeoutError:
            raise InvalidData(f"the chat template took longer than {self._timeout * 1000:.0f} ms") from None
        finally:
            if worker.process is None and not self._closed:
                with suppress(TemplateWorkerFailed):  # the next one to ask tries again, and tells
                    worker.start()
            self._idle.put(worker)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that were started."""
        return [process.pid for process in [worker.process for worker in self._workers] if process is not None]

    def close(self) -> None:
        """Waits for the renders in progress, then ends every worker. Idempotent."""
        self._closed = True
        for worker in [self._idle.get() for _ in self._workers]:
            worker.kill()
            self._idle.put(worker)

    def __enter__(self) -> "TemplateWorkers":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Worker:
    """One process and our end of its socket; used by one thread at a time."""

    def __init__(self, timeout: float, memory_bytes: int, output_bytes: int) -> None:
        self._timeout = timeout
        self._limits = [str(timeout), str(memory_bytes), str(output_bytes)]
        self._ready = False
        self._socket: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> socket.socket:
        """Our end of its socket. Does not wait: the first `ask` does. Raises TemplateWorkerFailed."""
        if self._socket is not None:
            return self._socket
        ours, theirs = socket.socketpair()
        numbers = [str(theirs.fileno()), *self._limits]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cdvft_server.template_process", *numbers],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
        except OSError as error:
            ours.close()
            raise TemplateWorkerFailed(f"a template worker could not be started: {error}") from error
        finally:
            theirs.close()
        self._socket, self._ready = ours, False
        return ours

    def ask(self, frame: bytes) -> dict[str, Any]:
        """Raises TimeoutError or WorkerDied; whatever is raised, the process and its late answer are gone."""
        connection = self.start()
        try:
            if not self._ready:
                self._await_start(connection)
            deadline = time.monotonic() + WALL_FACTOR * self._timeout
            send(connection, frame, deadline)
            return receive(connection, deadline)
        except WorkerDied:
            if self.kill(grace=1.0) == -signal.SIGPROF:
                raise TimeoutError from None
            raise
        except BaseException:
            self.kill()
            raise

    def _await_start(self, connection: socket.socket) -> None:
        try:
            self._ready = receive(connection, time.monotonic() + START_SECONDS) == {"ready": True}
        except (WorkerDied, TimeoutError):
            raise TemplateWorkerFailed(f"a template worker did not start (status {self.kill(grace=1.0)})") from None

    def kill(self, grace: float = 0.0) -> int | None:
        """End the process, after `grace` seconds where it may be ending by itself, and reap it; its exit status."""
        if self._socket is None or self.process is None:
            return None
        self._socket.close()
        try:
            self.process.wait(timeout=grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
        status = self.process.wait()
        self._socket = self.process = None
        return status


def _environment() -> dict[str, str]:
    """Our import path, and nothing else of the server's environment: a template's process holds no secrets."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONUTF8": "1"}
