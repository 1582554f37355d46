"""Starting and stopping: seeds, the demo, refusals, a drain, and nothing left behind."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from cdvft.backbone import Backbone
from cdvft.checkpoint import adapter_files, write_folder
from cdvft.errors import UnsupportedBase
from cdvft_server import demo
from cdvft_server.errors import StartRefused
from cdvft_server.exceptions import StoreError

from tests.server.http.conftest import config_for
from tests.server.http.harness import Fleet, Live, events_of
from tests.tiny import random_adapter


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("cdvft")}


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


STARTS_AND_STOPS = """
import json, os, sys, threading
from pathlib import Path
from cdvft_server.config import ServeConfig
from tests.server.http.harness import Live

seen = []
for _ in range(4):
    with Live(ServeConfig(base=sys.argv[1], port=0, database=sys.argv[2])) as live:
        assert live.complete("tiny-llama").status_code == 200
        chat = {"model": "tiny-llama", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
        assert live.post("/v1/chat/completions", chat).status_code == 200
    threads = sorted(thread.name for thread in threading.enumerate())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    seen.append({"threads": threads, "children": children, "files": len(os.listdir("/proc/self/fd"))})
print(json.dumps(seen))
"""


def test_nothing_is_left_after_a_stop(llama: Backbone, tmp_path: Path) -> None:
    """In a process of its own: servers of other tests start threads when they like."""
    script = [sys.executable, "-c", STARTS_AND_STOPS, str(llama.path), f"sqlite:///{tmp_path}/store.db"]
    environment = {**os.environ, "PYTHONPATH": "."}
    done = subprocess.run(script, check=False, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    first, *others = json.loads(done.stdout)
    assert set(first["threads"]) <= {"MainThread", "tqdm_monitor"}  # the second is transformers' progress bar's
    assert first["children"] == ""
    assert others == [first] * 3


def test_a_stop_lets_requests_end_and_then_cancels_them(llama: Backbone, tmp_path: Path) -> None:
    """Every stream that runs ends with a finish reason and [DONE]; after the deadline the reason is cancelled."""
    live = Live(config_for(llama, tmp_path, drain_seconds=0))
    body = {"model": "tiny-llama", "prompt": ["a"] * 64, "ignore_eos": True, "max_tokens": 250, "stream": True}
    with live.client.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        live.ask_to_stop()
        rest = list(lines)
    live.stop()
    assert [line for line in rest if line][-1] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in rest if line.startswith("data: {")]
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert len(reasons) == 64
    assert set(reasons) <= {"cancelled", "length"}
    assert "cancelled" in reasons


def test_a_drain_lets_short_requests_end(llama: Backbone, tmp_path: Path) -> None:
    live = Live(config_for(llama, tmp_path, drain_seconds=30))
    body = {"model": "tiny-llama", "prompt": "a", "ignore_eos": True, "max_tokens": 200, "stream": True}
    with live.client.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        live.ask_to_stop()
        text = "\n".join(lines)
    live.stop()
    assert '"finish_reason":"length"' in text
    assert text.rstrip().endswith("data: [DONE]")


def test_while_it_drains_nothing_new_is_taken(llama: Backbone, tmp_path: Path) -> None:
    import asyncio

    with Live(config_for(llama, tmp_path)) as live:
        fleet = Fleet(live, llama, tmp_path)
        fleet.add("judge", random_adapter(llama.info, 1, "classification"))
        asyncio.run_coroutine_threadsafe(live.service.drain(0), live.loop).result(60)
        for answer in (live.complete("tiny-llama"), live.classify("judge"), live.get("/ready")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
            assert "retry-after" in answer.headers
        assert live.get("/health").status_code == 200


def seeded(llama: Backbone, tmp_path: Path, **options: Any) -> Live:
    return Live(config_for(llama, tmp_path, adapters=(tmp_path / "fleet",), **options))


def test_folders_of_adapters(llama: Backbone, tmp_path: Path) -> None:
    """Uploaded where the name is new; other content under a known name is refused, or a new version if asked for."""
    for seed, name in enumerate(("one", "two")):
        write_folder(tmp_path / "fleet" / name, adapter_files(random_adapter(llama.info, seed), llama.info))
    with seeded(llama, tmp_path) as live:
        assert {row["id"] for row in live.get("/v1/adapters").json()["data"]} == {"one", "two"}
        live.client.delete("/v1/adapters/two")
    with seeded(llama, tmp_path) as live:
        assert {row["id"]: row["version"] for row in live.get("/v1/adapters").json()["data"]} == {"one": 1, "two": 2}
    write_folder(tmp_path / "fleet" / "one", adapter_files(random_adapter(llama.info, 9), llama.info))
    with pytest.raises(StartRefused, match="adapters-update"):
        seeded(llama, tmp_path)
    with seeded(llama, tmp_path, adapters_update=True) as live:
        assert live.get("/v1/adapters/one").json()["version"] == 2
    single = tmp_path / "fleet" / "one"
    with Live(config_for(llama, tmp_path, adapters=(single,))) as live:
        assert live.get("/v1/adapters/one").json()["version"] == 2


def test_demo_adapters_enter_a_store_once(llama: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that was deleted does not come back. (Here another base and its adapters play the embedded ones.)"""
    monkeypatch.setattr(demo, "base_path", lambda: llama.path)
    monkeypatch.setattr(demo, "adapters_path", lambda: tmp_path / "demo")
    for seed, name in enumerate(("one", "two")):
        write_folder(tmp_path / "demo" / name, adapter_files(random_adapter(llama.info, seed), llama.info))
    config = config_for(llama, tmp_path).model_copy(update={"base": None})
    with Live(config) as live:
        assert {row["id"] for row in live.get("/v1/adapters").json()["data"]} == {"one", "two"}
        assert live.complete("cdvft-tiny").headers["x-adapter"] == "cdvft-tiny"
        live.client.delete("/v1/adapters/one")
    with Live(config) as live:
        assert {row["id"] for row in live.get("/v1/adapters").json()["data"]} == {"two"}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"base": "/nowhere"}, UnsupportedBase, "/nowhere"),
        ({"adapters": ("/nowhere",)}, StartRefused, "/nowhere"),
        ({"context_length": 9999}, StartRefused, "context_length"),
        ({"cuda_graphs": "on"}, StartRefused, "CUDA graphs cannot be had"),
        ({"database": "mysql://a/b"}, StoreError, "mysql"),
    ],
)
def test_what_cannot_start_says_so_and_leaves_nothing(
    llama: Backbone, tmp_path: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    before, processes = threads(), children()
    with pytest.raises(error, match=words):
        Live(config_for(llama, tmp_path, **options))
    assert threads() == before
    assert children() == processes


def test_a_name_that_cannot_be_served(llama: Backbone, tmp_path: Path) -> None:
    odd = tmp_path / "my base (copy)"
    shutil.copytree(llama.path, odd)
    with pytest.raises(StartRefused, match="served-name"):
        Live(config_for(llama, tmp_path, base=str(odd)))
    with Live(config_for(llama, tmp_path, base=str(odd), served_name="mine")) as live:
        assert live.complete("mine").headers["x-adapter"] == "mine"


def test_metrics_count_what_happened(llama: Backbone, tmp_path: Path) -> None:
    with Live(config_for(llama, tmp_path)) as live:
        live.complete("tiny-llama", ignore_eos=True)
        live.complete("nobody")
        text = live.get("/metrics").text
        assert 'cdvft_http_responses_total{method="POST",route="/v1/completions",status="200"} 1.0' in text
        assert 'cdvft_http_responses_total{method="POST",route="/v1/completions",status="404"} 1.0' in text
        assert live.gauge("cdvft_generated_tokens_total") == 16
        live.wait_until_idle()


def test_asgi_without_a_socket(llama: Backbone, tmp_path: Path) -> None:
    """The app alone, as other programs may mount it."""
    import asyncio

    from cdvft_server.app import create_app

    async def ask() -> None:
        app = create_app(config_for(llama, tmp_path))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                body = {"model": "tiny-llama", "prompt": "a", "temperature": 0}
                whole = (await client.post("/v1/completions", json=body)).json()["choices"][0]["text"]
                events = events_of(await client.post("/v1/completions", json={**body, "stream": True}))
                assert "".join(e["choices"][0]["text"] for e in events[:-1]) == whole

    asyncio.run(ask())
