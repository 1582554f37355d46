"""A server in a process of its own: a full disk, a thousand clients, thousands of requests, and a signal to stop."""

import asyncio
import json
import random
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Semaphore
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from cdvft.backbone import Backbone
from cdvft.checkpoint import AdapterFiles
from cdvft_server.store import Store

from tests.server.http.harness import WAIT, error_of, wait_until
from tests.server.http.own_process import Own, serving

CONNECTIONS = 1000
SLACK = 1 << 20  # bytes that a file may still grow


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


KINDS = {"whole": 200, "several": 200, "stream": 200, "left": 200, "scores": 200, "too long": 400, "unknown": 404}


def mixed(own: Own, seed: int) -> str:
    """One request of a random kind, which must be answered as it should; its kind."""
    rng = random.Random(seed)
    kind, name = rng.choice(list(KINDS)), f"soak-{rng.randrange(4)}"
    prompt = "the cat " * rng.randint(1, 8)
    if kind in ("stream", "left"):
        body = {"model": name, "prompt": prompt, "max_tokens": 60, "ignore_eos": True, "stream": True}
        with own.client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            last = next(lines) if kind == "left" else [line for line in lines if line][-1]
        assert kind == "left" or last == "data: [DONE]"
    elif kind == "scores":
        answer = own.client.post("/v1/classify", json={"model": ["judge", "judge"], "input": [prompt, "the dog"]})
    else:
        n, most = (3 if kind == "several" else 1), (10_000 if kind == "too long" else rng.randint(1, 20))
        answer = own.complete("nobody" if kind == "unknown" else name, prompt, n=n, max_tokens=most, temperature=1)
    assert answer.status_code == KINDS[kind], kind
    return kind


def soak(own: Own, warm_up: int, requests: int) -> tuple[int, int]:
    """Of the process before and after the requests, after a warm-up: growth in bytes, and its size before."""
    for seed in range(4):
        assert own.upload(f"soak-{seed}", own.files(400 + seed)).status_code in (200, 201)
    assert own.upload("judge", own.files(404, "classification")).status_code in (200, 201)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda seed: mixed(own, seed), range(warm_up)))
        files, memory = own.open_files(), own.resident()
        kinds = list(threads.map(lambda seed: mixed(own, seed), range(warm_up, warm_up + requests)))
    for name in ("requests_running", "requests_waiting", "kv_tokens_used", "adapter_leases", "calls_in_flight"):
        wait_until(lambda name=name: own.gauge(f"cdvft_{name}") == 0)  # type: ignore[misc]
    wait_until(lambda: own.open_files() <= files + 4)
    after = own.resident()
    print({kind: kinds.count(kind) for kind in KINDS}, f"resident {memory >> 20} -> {after >> 20} MiB")
    return after - memory, memory


def test_requests_of_all_kinds_leave_nothing(own: Own) -> None:
    """A hundred kilobytes a request would be told."""
    growth, _ = soak(own, 150, 450)
    assert growth < 450 * 100_000


@pytest.mark.soak
def test_ten_thousand_requests_leave_the_memory_flat(own: Own) -> None:
    growth, memory = soak(own, 2_000, 10_000)
    assert growth < memory * 0.05 + (8 << 20)


def streamed(own: Own, started: Semaphore) -> tuple[list[str], str]:
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
