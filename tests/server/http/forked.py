"""`cdvft serve` in processes that are forked from one which has imported everything: each is up in under a second.

They are processes like any other: each has its own engine, store and port, and dies by `kill -9`. `python -m
tests.server.http.forked` is the process they come from; `Nursery` is that process for tests.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[3]
READY = "ready on "
MODULES = (
    "cdvft_server.cli.serve",
    "cdvft_server.logs",
    "cdvft_server.serving",
    "psycopg",
    "transformers.models.llama.modeling_llama",
)
CONSTANTS = {"cdvft_server.store.database.READ_SECONDS": 60.0}  # whatever else this machine does


class Server:
    """One process; `url` once it is ready. Its output is in the nursery's log."""

    def __init__(self, nursery: "Nursery", pid: int) -> None:
        self._nursery, self.pid, self.url = nursery, pid, ""
        self.alive = True

    def kill(self) -> None:
        """kill -9; it is gone when this returns."""
        self.alive = False
        assert self._nursery.ask({"kill": self.pid})["status"] == -signal.SIGKILL, self._nursery.log.read_text()


class Nursery:
    """For one thread at a time."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process, self.log = process, log

    def start(self, *options: str, constants: Mapping[str, float] | None = None) -> Server:
        """Ready; else as `begin`."""
        server = self.begin(*options, constants=constants)
        server.url = self.ask({"ready": server.pid})["url"]
        assert server.url, f"the server did not start:\n{self.log.read_text()}"
        return server

    def begin(self, *options: str, constants: Mapping[str, float] | None = None) -> Server:
        """`cdvft serve` with these options, on a port that the system finds; module constants may have other values."""
        command = [*options, "--port", "0", "--log-level", "warning"]
        return Server(self, self.ask({"serve": command, "constants": CONSTANTS | dict(constants or {})})["pid"])

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self.log.read_text()
        return dict(json.loads(line))


@contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    """At the end all its servers are killed."""
    log = folder / "servers.log"
    command = [sys.executable, "-m", "tests.server.http.forked"]
    pipe = subprocess.PIPE
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=output, text=True, cwd=ROOT) as process,
    ):
        yield Nursery(process, log)


class _Children:
    """In the process that forks."""

    def __init__(self) -> None:
        self._outputs: dict[int, IO[str]] = {}

    def begin(self, options: list[str], constants: Mapping[str, float]) -> int:
        """Its id."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _become_server(writing, options, constants)
        os.close(writing)
        self._outputs[pid] = os.fdopen(reading)
        return pid

    def url(self, pid: int) -> str | None:
        """Once it is ready; None where it ends before."""
        ready = next((line for line in self._outputs[pid] if READY in line), None)
        return ready and ready.partition(READY)[2].split()[0]

    def kill(self, pid: int) -> int:
        """Its exit status."""
        os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._outputs.pop(pid).close()
        return status

    def kill_all(self) -> None:
        for pid in list(self._outputs):
            self.kill(pid)


def _become_server(output: int, options: list[str], constants: Mapping[str, float]) -> None:
    from cdvft_server.cli import main

    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        for name, value in constants.items():
            module, _, constant = name.rpartition(".")
            setattr(import_module(module), constant, value)
        main(["serve", *options], prog_name="cdvft")
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    finally:
        os._exit(1)


def _main() -> None:
    for module in MODULES:
        import_module(module)
    children = _Children()
    for line in sys.stdin:
        asked = json.loads(line)
        if "serve" in asked:
            answer: dict[str, Any] = {"pid": children.begin(asked["serve"], asked["constants"])}
        elif "ready" in asked:
            answer = {"url": children.url(asked["ready"])}
        else:
            answer = {"status": children.kill(asked["kill"])}
        print(json.dumps(answer), flush=True)
    children.kill_all()


if __name__ == "__main__":
    _main()
