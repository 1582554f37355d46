"""Over HTTP: one tenant floods a server from a process of its own, another sends one request a second.

Two servers, one that schedules fairly and one that does not, are flooded in turn; before each pair of laps the same
requests are sent to the first of the two, idle. Server, flood and probes share the machine.
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from cdvft.backbone import load_backbone
from cdvft.checkpoint import adapter_files
from cdvft_server.bench.fleet import Fleet
from cdvft_server.bench.timing import milliseconds
from cdvft_server.store import Store

from tests.bench.closed_loop import Connection
from tests.bench.fairness import Case
from tests.e2e.serving import free_port, wait_until

__all__ = ["compare"]

CONNECTIONS = 64
LAP = 30  # probes: with fewer, what was saved up for short batches before a lap would count
EVERY = 1.0  # seconds
WARM_UP = 3.0  # seconds of flood
REQUESTS = 256  # different ones of the flood
START_SECONDS = 120


@dataclass
class Lap:
    """`latencies` of the probes in seconds; `throughput`: the flood's answers in a second."""

    latencies: list[float]
    throughput: float


class Side:
    """A server with the tenants `flood` and `probe`, and an adapter for each."""

    def __init__(self, case: Case, url: str, database: str) -> None:
        self._case, self._url, self._address = case, url, urlsplit(url)
        self._encoder = case.probe_answer == 0
        store = Store.open(database)
        self._keys = {}
        for tenant in ("flood", "probe"):
            store.tenants.create(tenant)
            self._keys[tenant] = store.keys.create(tenant, ("infer", "upload"), None, int(time.time()))[1]
        store.close()
        backbone = load_backbone(case.base)
        fleet = Fleet(backbone.info, "cdvft", "classify" if self._encoder else "generate")
        files = adapter_files(fleet.adapter(0), backbone.info)
        for key in self._keys.values():
            parts = {"config": ("c.json", files.config), "weights": ("w", files.weights)}
            headers = {"authorization": f"Bearer {key}"}
            answer = httpx.post(f"{url}/v1/adapters", data={"name": "own"}, files=parts, headers=headers, timeout=60)
            answer.raise_for_status()

    def idle(self, probes: int) -> list[float]:
        return self._probes(probes)

    def flooded(self, probes: int) -> Lap:
        case, rng = self._case, random.Random(0)
        lengths = [(rng.randint(*case.flood), rng.randint(*case.flood_answer)) for _ in range(REQUESTS)]
        requests = [self._request("flood", prompt, answer) for prompt, answer in lengths]
        with _flood(self._host, self._port, [own.decode() for own in requests]) as answers:
            time.sleep(WARM_UP)
            before, begun = answers(), time.perf_counter()
            latencies = self._probes(probes)
            lap = Lap(latencies, (answers() - before) / (time.perf_counter() - begun))
        wait_until(self._is_idle, "the end of the flood")
        return lap

    def _is_idle(self) -> bool:
        lines = httpx.get(f"{self._url}/metrics").text.splitlines()
        return all(f"cdvft_{what} 0.0" in lines for what in ("calls_in_flight", "requests_running", "requests_waiting"))

    @property
    def _host(self) -> str:
        assert self._address.hostname is not None
        return self._address.hostname

    @property
    def _port(self) -> int:
        assert self._address.port is not None
        return self._address.port

    def _probes(self, count: int) -> list[float]:
        request = self._request("probe", self._case.probe, self._case.probe_answer)
        connection, latencies = Connection(self._host, self._port), []
        begun = time.perf_counter()
        for number in range(count):
            time.sleep(max(0.0, begun + number * EVERY - time.perf_counter()))
            sent = time.perf_counter()
            answer = connection.ask(request)
            latencies.append(time.perf_counter() - sent)
            if answer.split(b" ", 2)[1] != b"200":
                raise RuntimeError(f"a probe was answered {answer!r}")
        connection.socket.close()
        return latencies

    def _request(self, tenant: str, prompt: int, answer: int) -> bytes:
        """Of about so many tokens."""
        text = " ".join(["a text"] * (prompt // 2 - 1))
        body: dict[str, Any] = {"model": "own"}
        if self._encoder:
            path, body = "/v1/classify", body | {"input": text}
        else:
            path, body = "/v1/completions", body | {"prompt": [5] * prompt, "max_tokens": answer, "ignore_eos": True}
        content = json.dumps(body)
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        lines += [f"Authorization: Bearer {self._keys[tenant]}", f"Content-Length: {len(content)}"]
        return "\r\n".join([*lines, "", content]).encode()


@contextmanager
def _flood(host: str, port: int, requests: Sequence[str]) -> Iterator[Callable[[], int]]:
    """Runs inside the block, and tells how many answers it has had. Raises where one was no 200."""
    command = [sys.executable, "-m", "tests.bench.closed_loop", host, str(port), str(CONNECTIONS)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(line: str) -> int:
            stdin.write(line + "\n")
            stdin.flush()
            counts = json.loads(stdout.readline())
            if counts["errors"]:
                raise RuntimeError(f"{counts['errors']} requests of the flood were refused")
            return int(counts["answers"])

        stdin.write(json.dumps(requests) + "\n")
        yield lambda: ask("")
        stdin.close()


@contextmanager
def _server(case: Case, scheduling: str, threads: int) -> Iterator[Side]:
    """In a process and a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="cdvft-bench-") as folder:
        port, database = free_port(), f"sqlite:///{folder}/store.db"
        command = [sys.executable, "-m", "cdvft_server.cli", "serve", "--base", case.base, "--database", database]
        command += ["--port", str(port), "--scheduling", scheduling, "--threads", str(threads)]
        output = Path(folder) / "log"
        with output.open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                url = f"http://127.0.0.1:{port}"
                wait_until(lambda: process.poll() is not None or _is_ready(url), "the server", START_SECONDS)
                if process.poll() is not None:
                    raise RuntimeError(f"the server did not start:\n{output.read_text()}")
                yield Side(case, url, database)
            finally:
                process.terminate()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def compare(case: Case, probes: int, threads: int) -> dict[str, float]:
    """Laps in turn, idle probes before each pair."""
    idle: list[float] = []
    laps: dict[str, list[Lap]] = {"fair": [], "fifo": []}
    with ExitStack() as stack:
        sides = {name: stack.enter_context(_server(case, name, threads)) for name in laps}
        for side in sides.values():
            side.flooded(1)
        for number in range(-(-probes // LAP)):
            count = min(LAP, probes - number * LAP)
            order = list(laps)[:: 1 if number % 2 else -1]
            idle += sides[order[0]].idle(count)
            for name in order:
                laps[name].append(sides[name].flooded(count))
    alone = milliseconds(idle)
    shown = {"connections": CONNECTIONS, "idle_p50_ms": alone["p50_ms"], "idle_p95_ms": alone["p95_ms"]}
    for name, own in laps.items():
        beside = milliseconds([latency for lap in own for latency in lap.latencies])
        shown[f"{name}_p50_ratio"] = round(beside["p50_ms"] / alone["p50_ms"], 2)
        shown[f"{name}_p95_ratio"] = round(beside["p95_ms"] / alone["p95_ms"], 2)
    pairs = zip(laps["fair"], laps["fifo"], strict=True)
    return shown | {"throughput_ratio": round(statistics.median(a.throughput / b.throughput for a, b in pairs), 3)}
