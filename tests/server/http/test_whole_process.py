"""A server in a process of its own: its disk is full, a thousand clients are connected, it is told to stop."""

import asyncio
import json
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from cdvft.backbone import Backbone
from cdvft.checkpoint import AdapterFiles, adapter_files
from cdvft_server.store import Store

from tests.server.deployment.compose import Process, running, served
from tests.server.http.harness import WAIT, error_of
from tests.tiny import random_adapter

CONNECTIONS = 1000
SLACK = 1 << 20  # bytes that a file may still grow


class Own:
    """The process, a client of it, and its store's address."""

    def __init__(self, process: Process, url: str, database: str, base: Backbone) -> None:
        self.process, self.url, self.database, self.base = process, url, database, base
        self.client = httpx.Client(base_url=url, timeout=WAIT)

    def files(self, seed: int) -> AdapterFiles:
        return adapter_files(random_adapter(self.base.info, seed), self.base.info)

    def upload(self, name: str, files: AdapterFiles) -> httpx.Response:
        parts = {"config": ("c.json", files.config), "weights": ("w.safetensors", files.weights)}
        return self.client.post("/v1/adapters", data={"name": name}, files=parts)

    def complete(self, model: str, **fields: Any) -> httpx.Response:
        body = {"model": model, "prompt": "the cat", "temperature": 0, **fields}
        return self.client.post("/v1/completions", json=body)


@contextmanager
def serving(base: Backbone, folder: Path, *options: str) -> Iterator[Own]:
    database = f"sqlite:///{folder}/store.db"
    with running(served(["serve", "--base", str(base.path), "--database", database, *options])) as process:
        own = Own(process, process.find(r"ready on (http://\S+)"), database, base)
        with own.client:
            yield own


@pytest.fixture(scope="module")
def own(llama: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    folder = tmp_path_factory.mktemp("process")
    with serving(llama, folder, "--max-connections", str(CONNECTIONS + 100), "--max-queue", "4096") as started:
        yield started


@contextmanager
def full_disk(own: Own, folder: Path) -> Iterator[None]:
    """No file of the process may grow by more than SLACK, as on a disk without room; other processes write on."""
    pid, largest = own.process.process.pid, max(path.stat().st_size for path in folder.glob("store.db*"))
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest + SLACK, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_nothing_and_stops_nobody(own: Own) -> None:
    """What was acknowledged is there, byte for byte; what was refused is not; inference goes on; then all is well."""
    folder = Path(own.database.removeprefix("sqlite:///")).parent
    stored: dict[str, AdapterFiles] = {}
    with full_disk(own, folder):
        for seed in range(200):
            name = f"full-{seed}"
            answer = own.upload(name, own.files(seed))
            if answer.status_code != 201:
                break
            stored[name] = own.files(seed)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"]
        assert own.client.get(f"/v1/adapters/{name}").status_code == 404
        large = own.files(0)
        refused = own.upload("large", AdapterFiles(large.config, large.weights + bytes(8 << 20)))
        assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
        for model in (*stored, "tiny-llama"):
            assert own.complete(model).headers["x-adapter"] == model
        assert own.client.get("/health").status_code == 200
    assert stored
    assert own.upload(name, own.files(seed)).status_code == 201
    stored[name] = own.files(seed)
    assert own.client.get("/ready").status_code == 200
    with_store = Store.open(own.database)
    rows = {row.name: row for row in with_store.list_adapters("default", own.base.info.digest, limit=100)[0]}
    assert set(rows) >= set(stored)
    for name, files in stored.items():
        assert with_store.files(rows[name].id) == files
    with_store.close()


@contextmanager
def many_files() -> Iterator[None]:
    """As many descriptors as both processes need, else the test is skipped."""
    needed = 64 + 3 * (CONNECTIONS + 100)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (-1, resource.RLIM_INFINITY) and hard < needed:
        pytest.skip(f"a process may open {hard} files here, {needed} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_clients_at_once(own: Own) -> None:
    """All are connected before the first one asks; each gets what its adapter answers alone."""
    models = ["tiny-llama"]
    for seed in range(300, 307):
        assert own.upload(f"many-{seed}", own.files(seed)).status_code == 201
        models.append(f"many-{seed}")
    alone = {model: own.complete(model, max_tokens=4).json()["choices"] for model in models}
    address = urlsplit(own.url)

    async def ask(model: str, all_connected: asyncio.Barrier) -> tuple[str, str, Any]:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        await all_connected.wait()
        body = json.dumps({"model": model, "prompt": "the cat", "temperature": 0, "max_tokens": 4}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        )
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        data = await reader.read()
        writer.close()
        top, _, content = data.partition(b"\r\n\r\n")
        return model, top.split(b"\r\n")[0].decode(), json.loads(content)

    async def all_of_them() -> list[tuple[str, str, Any]]:
        barrier = asyncio.Barrier(CONNECTIONS)
        return await asyncio.gather(*(ask(models[k % len(models)], barrier) for k in range(CONNECTIONS)))

    with many_files():
        answers = asyncio.run(all_of_them())
    for model, status, body in answers:
        assert status == "HTTP/1.1 200 OK", body
        assert body["choices"] == alone[model]
    assert own.complete(models[1], max_tokens=4).json()["choices"] == alone[models[1]]


def streamed(own: Own, started: Any) -> tuple[list[str], str]:
    """Finish reasons and the last line of a stream of eight sequences; `started` is told of its first event."""
    body = {"model": "tiny-llama", "prompt": ["a"] * 8, "ignore_eos": True, "max_tokens": 250, "stream": True}
    with own.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        texts = [next(lines)]
        started.release()
        texts += [line for line in lines if line]
    chunks = [json.loads(text.removeprefix("data: ")) for text in texts if text.startswith("data: {")]
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    return [reason for reason in reasons if reason], texts[-1]


def test_sigterm_drains_within_its_deadline(llama: Backbone, tmp_path: Path) -> None:
    """Every stream that began gets all its endings; the process is gone by itself."""
    from threading import Semaphore

    started, streams = Semaphore(0), 6
    with serving(llama, tmp_path, "--drain-seconds", "0.5") as own, ThreadPoolExecutor(streams) as threads:
        running_streams = [threads.submit(streamed, own, started) for _ in range(streams)]
        for _ in range(streams):
            assert started.acquire(timeout=WAIT)
        told = time.monotonic()
        status = own.process.end()
        print(f"ended {time.monotonic() - told:.2f} s after SIGTERM (--drain-seconds 0.5)")
        for stream in running_streams:
            reasons, last = stream.result(WAIT)
            assert len(reasons) == 8
            assert set(reasons) <= {"cancelled", "length"}
            assert last == "data: [DONE]"
        assert status in (0, -15), "".join(own.process.log)
        with pytest.raises(httpx.TransportError):
            own.client.get("/health")
