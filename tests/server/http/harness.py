"""A real server on a free port in a thread of this process, and what tests ask of it."""

import asyncio
import copy
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
from cdvft.adapter import Adapter
from cdvft.backbone import Backbone
from cdvft.checkpoint import AdapterFiles, adapter_files
from cdvft_server.config import ServeConfig
from cdvft_server.service import Service
from cdvft_server.serving import Server, make_server

WAIT = 60.0  # seconds: a bound for a hang, not a pace


class Live:
    """One running server. `service` is its inside; `on_loop` reaches it from the test's thread."""

    service: Service
    server: Server
    url: str

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self._up = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="live-server")
        self._thread.start()
        self._up.wait(WAIT)
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        self.client = httpx.Client(base_url=self.url, timeout=WAIT)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
        self._up.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.service = await Service.start(self.config)
        self.server = make_server(self.config, self.service, self._announce, log_level="warning")
        await self.server.serve()

    def _announce(self, url: str) -> None:
        self.url = url
        self._up.set()

    def ask_to_stop(self) -> None:
        self.server.should_exit = True

    def stop(self) -> None:
        """Raises what the server ended with."""
        self.ask_to_stop()
        self._thread.join(WAIT)
        self.client.close()
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @contextmanager
    def acting(self, key: str) -> Iterator["Live"]:
        """The same server, asked with this key."""
        other = copy.copy(self)
        with httpx.Client(base_url=self.url, timeout=WAIT, headers={"authorization": f"Bearer {key}"}) as other.client:
            yield other

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def upload(self, name: str, files: AdapterFiles, **fields: str) -> httpx.Response:
        """By the form of two files, or as a zip where there are more."""
        data = {"name": name, **fields}
        if len(files.named()) > 2:
            return self.client.post("/v1/adapters", data=data, files={"archive": ("a.zip", zipped(files))})
        parts = {"config": ("adapter_config.json", files.config), "weights": ("adapter.safetensors", files.weights)}
        return self.client.post("/v1/adapters", data=data, files=parts)

    def complete(self, model: str, prompt: Any = "the cat", **fields: Any) -> httpx.Response:
        return self.post("/v1/completions", {"model": model, "prompt": prompt, "temperature": 0, **fields})

    def classify(self, model: Any, text: Any = "the cat", **fields: Any) -> httpx.Response:
        return self.post("/v1/classify", {"model": model, "input": text, **fields})

    def gauge(self, name: str) -> float:
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise KeyError(name)

    def wait_until_idle(self) -> None:
        """No engine request, lease or flight is left."""
        names = ("requests_waiting", "requests_running", "adapter_leases", "calls_in_flight", "kv_tokens_used")
        wait_until(lambda: not any(self.gauge(f"cdvft_{name}") for name in names))

    def stored(self) -> list[dict[str, Any]]:
        """Everything in the store but what counts its use."""
        rows = []
        for entry in self.get("/v1/adapters", params={"limit": 100}).json()["data"]:
            versions = self.get(f"/v1/adapters/{entry['id']}/versions", params={"limit": 100}).json()["data"]
            rows += [{k: v for k, v in row.items() if k not in ("hits", "last_used", "residency")} for row in versions]
        return rows


@dataclass
class Fleet:
    """A server with adapters whose names say their task."""

    live: Live
    base: Backbone
    folder: Path
    adapters: dict[str, Adapter] = field(default_factory=dict)

    def add(self, name: str, adapter: Adapter, **fields: str) -> dict[str, Any]:
        answer = self.live.upload(name, adapter_files(adapter, self.base.info), **fields)
        assert answer.status_code == 201, answer.text
        self.adapters[name] = adapter
        return answer.json()

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """What happens inside leaves the store as it was, the engine alive and the good answers what they were."""
        stored, good = self.live.stored(), self._good_answers()
        yield
        assert self._good_answers() == good
        assert self.live.stored() == stored
        self.live.wait_until_idle()

    def _good_answers(self) -> list[Any]:
        answers = []
        for name, adapter in self.adapters.items():
            ask = self.live.complete if adapter.spec.task == "lm" else self.live.classify
            answer = ask(name)
            assert answer.status_code == 200, answer.text
            answers.append(answer.json().get("choices") or answer.json()["data"])
        return answers


@contextmanager
def braked(live: Live) -> Iterator[Callable[[], None]]:
    """The engine stands still between two steps; what is yielded lets it take one, with all that was sent before."""
    engine = live.service._parts.engine
    holds: list[_Hold] = []

    def hold() -> None:
        holds.append(_Hold(live))
        for before in holds[:-1]:
            before.go_on.set()
        assert holds[-1].holding.wait(WAIT)

    def step() -> None:
        before = engine.stats().batches
        for _ in range(3):  # the first may be needed to take in what was sent
            if engine.stats().batches == before:
                hold()
        assert engine.stats().batches == before + 1

    try:
        hold()
        yield step
    finally:
        for own in holds:
            own.go_on.set()


class _Hold:
    def __init__(self, live: Live) -> None:
        self.go_on, self.holding = threading.Event(), threading.Event()
        live.service._parts.engine.call(self._wait)

    def _wait(self) -> None:
        self.holding.set()
        self.go_on.wait(WAIT)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error's detail, after checking its shape and that it holds no trace."""
    assert answer.headers["content-type"] == "application/json", answer.text
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert len(body["error"]["message"]) < 1000
    assert "Traceback" not in answer.text
    return body["error"]


def wait_until(condition: Any, seconds: float = WAIT) -> None:
    """Ask again and again; every question is a round trip to the server, so this does not spin."""
    import time

    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"


def zipped(files: AdapterFiles, folder: str = "") -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.named().items():
            archive.writestr(folder + name, data)
    return content.getvalue()


def events_of(answer: httpx.Response) -> list[Any]:
    """The events of a stream: JSON, and "[DONE]" as it is."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    texts = [block.removeprefix("data: ") for block in answer.text.split("\n\n") if block]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]
