"""docker/compose.yaml as compose would read it, and its services' commands run without Docker."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import yaml

DOCKER = Path(__file__).resolve().parents[3] / "docker"
WAIT = 240.0  # seconds: a bound for a hang, not a pace
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}")


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    """The file with its YAML merges resolved, its variables as they are."""
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())
    return loaded


def filled(text: str, values: Mapping[str, str]) -> str:
    """With variables put in as compose does; one that is required and not given is a KeyError."""
    return VARIABLE.sub(lambda found: values.get(found[1]) or found[2] or values[found[1]], text)


def environment(service: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, str]:
    return {name: filled(text, values) for name, text in service.get("environment", {}).items()}


class Process:
    """A program under test: its output is read all the time, so that its pipe never fills."""

    def __init__(self, command: list[str], extra: Mapping[str, str]) -> None:
        self.log: list[str] = []
        self._lines: Queue[str | None] = Queue()
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **extra},
        )
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.log.append(line)
                self._lines.put(line)
        self._lines.put(None)

    def find(self, pattern: str) -> str:
        """The first group of the first line from now on that matches."""
        while True:
            try:
                line = self._lines.get(timeout=WAIT)
            except Empty:
                line = None
            assert line is not None, f"no {pattern!r} in:\n{''.join(self.log)}"
            if match := re.search(pattern, line):
                return match[1]

    def end(self) -> int:
        """SIGTERM, and its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(WAIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._reader.join()


@contextmanager
def running(command: list[str], extra: Mapping[str, str] | None = None) -> Iterator[Process]:
    started = Process(command, extra or {})
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.end()
        started._reader.join()


def served(command: list[str]) -> list[str]:
    """The server's command for this interpreter, on a port that the system finds (the last --port counts)."""
    return [sys.executable, "-m", "cdvft_server.cli", *command, "--port", "0"]
