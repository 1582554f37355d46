"""Two tenants on one server: neither sees that the other has anything, but what is public."""

import re
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from cdvft.backbone import Backbone
from cdvft.checkpoint import adapter_files
from cdvft_server.errors import ApiError
from cdvft_server.service.access import Caller
from sqlalchemy import Engine, event

from tests.server.http.conftest import config_for
from tests.server.http.harness import WAIT, Fleet, Live, braked, error_of, events_of, wait_until
from tests.tiny import random_adapter

PRIVATE, MISSING = "bob/secret", "bob/nobody"  # as long as each other
BACKGROUND = re.compile(r"\b(news|receipts|replicas|usage|usage_writers|keys)\b")  # tables


class Two:
    """alice and bob have `same`, of the same bytes; bob has `secret`, and `open`, which is public. Both ask by keys."""

    def __init__(self, live: Live, base: Backbone, alice: Live, bob: Live) -> None:
        self.live, self.alice, self.bob = live, alice, bob
        self.alices, self.bobs = (Fleet(own, base, None) for own in (alice, bob))  # type: ignore[arg-type]
        same = random_adapter(base.info, 1)
        self.answers = [self.alices.add("same", same), self.bobs.add("same", same)]
        self.bobs.add("secret", random_adapter(base.info, 2), alias="prod")
        self.bobs.add("open", random_adapter(base.info, 3), public="true")
        self.bobs.add("judge", random_adapter(base.info, 4, "classification"))


@contextmanager
def keyed(live: Live, tenant: str) -> Iterator[Live]:
    store = live.service._parts.store
    store.tenants.create(tenant)
    with live.acting(store.keys.create(tenant, ["infer", "upload"], None, 0)[1]) as own:
        yield own


@pytest.fixture(scope="module")
def two(llama: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("two")
    with Live(config_for(llama, folder)) as live, keyed(live, "alice") as alice, keyed(live, "bob") as bob:
        yield Two(live, llama, alice, bob)


ASKS = {
    "complete": lambda live, model: live.complete(model),
    "stream": lambda live, model: live.complete(model, stream=True),
    "chat": lambda live, model: live.post(
        "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "a"}]}
    ),
    "classify": lambda live, model: live.classify(model),
    "classify several": lambda live, model: live.classify([model], ["a"]),
    "merged": lambda live, model: live.post(
        "/v1/completions", {"model": model, "prompt": "a"}, headers={"x-adapter-mode": "merged"}
    ),
    "model": lambda live, model: live.get(f"/v1/models/{model}"),
    "describe": lambda live, model: live.get(f"/v1/adapters/{model}"),
    "delete": lambda live, model: live.client.delete(f"/v1/adapters/{model}"),
    "describe quoted": lambda live, model: live.get(f"/v1/adapters/{model.replace('/', '%2F')}"),
}


def seen(answer: httpx.Response) -> tuple[Any, ...]:
    headers = {name: value for name, value in answer.headers.items() if name not in ("x-request-id", "date")}
    return answer.status_code, headers, answer.text


@pytest.mark.parametrize("selector", ["", "@latest", "@prod", "@1", "@sha256:0123456789ab"])
@pytest.mark.parametrize("ask", ASKS)
def test_a_private_adapter_is_as_one_that_is_missing(two: Two, ask: str, selector: str) -> None:
    """The same bytes, the same headers, the same statements to the store."""
    found = []
    for model in (PRIVATE, MISSING):
        with statements() as said:
            status, headers, text = seen(ASKS[ask](two.alice, model + selector))
        assert status == 404
        found.append((headers, re.sub(re.escape(model), "MODEL", text), said))
    assert found[0] == found[1]
    assert not any(name.startswith("x-adapter") for name in found[0][0])


@contextmanager
def statements() -> Iterator[list[str]]:
    """What is sent to databases meanwhile, without its values and without what does not depend on what was asked for:
    the key, which is read again where anything was written; and what servers do in the background, where they count
    hits and usage, and listen to each other."""
    said: list[str] = []

    def listen(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith(("UPDATE versions", "BEGIN")) and not BACKGROUND.search(statement):
            said.append(statement)

    event.listen(Engine, "before_cursor_execute", listen)
    try:
        yield said
    finally:
        event.remove(Engine, "before_cursor_execute", listen)


def test_names_are_in_a_tenants_own_namespace(two: Two) -> None:
    assert two.answers[0]["digest"] == two.answers[1]["digest"]
    assert [row["id"] for row in two.alice.get("/v1/adapters").json()["data"]] == ["same"]
    listed = {model["id"] for model in two.alice.get("/v1/models").json()["data"]}
    assert listed == {"tiny-llama", "same"}
    assert two.alice.complete("secret").status_code == 404
    for name in ("bob/open", "tiny-llama:bob/open", "bob/open@1"):
        answer = two.alice.complete(name)
        assert answer.headers["x-adapter"] == "bob/open"
    assert two.bob.complete("open").json()["choices"] == answer.json()["choices"]
    assert two.alice.get("/v1/models/bob/open").json()["owned_by"] == "bob"
    assert two.alice.client.delete("/v1/adapters/open").status_code == 404
    assert two.alice.complete("alice/same").headers["x-adapter"] == "same"
    mixed = two.alice.classify(["same", "bob/judge"], ["a", "b"])
    assert mixed.status_code == 404


def test_metrics_name_no_adapter_and_no_key(two: Two) -> None:
    two.bob.complete("secret")
    text = two.live.get("/metrics").text
    assert not re.search("secret|judge|cdvft-|sha256", text)


def test_what_one_has_used_does_not_show_to_another_with_the_same_bytes(llama: Backbone, tiny_server: Any) -> None:
    """Not where it is, not how often it was used, not how it runs, not what a delete frees."""
    live = tiny_server().live
    with keyed(live, "alice") as alice, keyed(live, "bob") as bob:
        same = random_adapter(llama.info, 1)
        fleets = [Fleet(own, llama, None) for own in (alice, bob)]  # type: ignore[arg-type]
        first, second = (fleet.add("same", same) for fleet in fleets)
        assert {**first, "created_at": 0} == {**second, "created_at": 0}
        assert alice.client.put("/v1/adapters/same", json={"pinned": True}).status_code == 200
        merged = {"x-adapter-mode": "merged"}
        asked = {"model": "same", "prompt": "the cat", "temperature": 0}
        told = alice.post("/v1/completions", asked, headers=merged)
        assert told.headers["x-adapter-mode"] == "merged"
        described = bob.get("/v1/adapters/same").json()
        use = (described["residency"], described["hits"], described["last_used"], described["pinned"])
        assert use == ("store", 0, None, False)
        loaded = live.gauge("cdvft_adapters_resident")
        plain = bob.complete("same")
        assert plain.json()["choices"] == told.json()["choices"]
        assert live.gauge("cdvft_adapters_resident") == loaded + 1
        assert bob.post("/v1/completions", asked, headers=merged).json()["choices"] == told.json()["choices"]
        freed = [own.client.delete("/v1/adapters/same").json()["bytes_freed"] for own in (alice, bob)]
        assert freed == [first["bytes"], first["bytes"]]
        assert live.gauge("cdvft_adapters_resident") == 0


def test_an_upload_of_what_another_has_takes_the_same_way(two: Two, llama: Backbone) -> None:
    known, new = random_adapter(llama.info, 21), random_adapter(llama.info, 22)
    two.alices.add("known", known)
    ways = []
    for name, adapter in (("first", known), ("other", new)):
        with statements() as said:
            two.bobs.add(name, adapter)
        ways.append(said)
        assert two.bob.client.delete(f"/v1/adapters/{name}").json()["bytes_freed"] > 0
    assert ways[0] == ways[1]
    assert two.alice.client.delete("/v1/adapters/known").json()["bytes_freed"] > 0


def test_a_rate_is_told_and_held(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that stands."""
    store, engine = two.live.service._parts.store, two.live.service._parts.engine
    monkeypatch.setattr(two.live.service.limiter, "_clock", lambda: 0.0)
    with keyed(two.live, "carol") as carol:
        assert not any(name.startswith("x-ratelimit") for name in carol.get("/v1/models").headers)
        store.tenants.set("carol", {"requests_per_minute": 2, "tokens_per_minute": 1000, "max_concurrent": 1})
        answer = carol.complete("tiny-llama", [[5, 6, 7]], max_tokens=4, ignore_eos=True)
        assert answer.json()["usage"]["total_tokens"] == 7
        assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
        assert answer.headers["x-ratelimit-remaining-requests"] == "1"
        assert answer.headers["x-ratelimit-remaining-tokens"] == "993"
        assert carol.get("/v1/models/nobody").status_code == 404
        refused = carol.get("/v1/models")
        assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limited")
        assert refused.headers["retry-after"] == "30"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        store.tenants.set("carol", {"requests_per_minute": None, "tokens_per_minute": 107})
        go_on = threading.Event()
        engine.call(lambda: go_on.wait(60))  # it answers nothing for now
        body = {"model": "tiny-llama", "prompt": [[5] * 8], "max_tokens": 90, "ignore_eos": True, "stream": True}
        with carol.client.stream("POST", "/v1/completions", json=body) as running:
            assert running.headers["x-ratelimit-remaining-tokens"] == "2"
            refused = carol.get("/v1/models")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert "run already" in error_of(refused)["message"]
            go_on.set()
            assert running.read().endswith(b"data: [DONE]\n\n")
        assert carol.get("/v1/models").status_code == 200
        refused = carol.complete("tiny-llama", [[5] * 8], max_tokens=90)
        assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limited")
        assert two.alice.complete("same").status_code == 200


def test_a_quota_is_told_and_held(two: Two, llama: Backbone) -> None:
    with keyed(two.live, "dora") as dora:
        fleet = Fleet(dora, llama, None)  # type: ignore[arg-type]
        two.live.service._parts.store.tenants.set("dora", {"max_adapters": 1})
        fleet.add("one", random_adapter(llama.info, 7))
        files = adapter_files(random_adapter(llama.info, 8), llama.info)
        refused = dora.upload("two", files)
        assert (refused.status_code, error_of(refused)["code"]) == (403, "quota_exceeded")
        assert "adapter 2 of at most 1" in error_of(refused)["message"]
        assert dora.upload("one", files).json()["version"] == 2
        assert [row["id"] for row in dora.get("/v1/adapters").json()["data"]] == ["one"]


def test_uploads_at_a_time_are_limited(tiny_server: Any, llama: Backbone) -> None:
    """One that is on its way counts; those beyond are turned away before they are read."""
    live = tiny_server(max_uploads=1).live
    files = adapter_files(random_adapter(llama.info, 1), llama.info)
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="name"\r\n\r\n'
        begun.set()
        assert go_on.wait(60)
        yield b"one\r\n--x--\r\n"

    def send() -> None:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        httpx.post(f"{live.url}/v1/adapters", content=slow(), headers=headers, timeout=60)

    thread = threading.Thread(target=send)
    thread.start()
    assert begun.wait(60)
    deadline = time.monotonic() + 60
    while live.service.uploads._running.total() == 0:
        assert time.monotonic() < deadline
        live.get("/health")
    refused = live.upload("two", files)
    go_on.set()
    thread.join()
    assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert live.upload("two", files).status_code == 201


def test_one_who_takes_all_uploads_leaves_some_to_others(tiny_server: Any) -> None:
    live = tiny_server(max_uploads=4).live
    turn, unkeyed = live.service.uploads.turn, Caller("default", frozenset())
    alice, bob, carol = (Caller(name, frozenset(), f"key_{name}") for name in ("alice", "bob", "carol"))
    with ExitStack() as held:
        for caller, fit in ((alice, 2), (bob, 1), (carol, 1)):
            for _ in range(fit):
                held.enter_context(turn(caller))
            with pytest.raises(ApiError, match="try again in a second"):
                held.enter_context(turn(caller))
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(turn(unkeyed))  # alone
        with pytest.raises(ApiError, match="4 uploads run already"):
            held.enter_context(turn(unkeyed))
    assert not live.service.uploads._running


def test_one_who_fills_the_queue_keeps_only_itself_out(tiny_server: Any) -> None:
    live = tiny_server(max_queue=32, max_sequences=32).live
    with keyed(live, "alice") as alice, keyed(live, "bob") as bob, ThreadPoolExecutor(4) as sending:
        with braked(live):
            sent = [sending.submit(alice.complete, "tiny-llama", prompt=["a"] * 32)]
            for waiting in (32, 33):
                wait_until(lambda there=waiting: live.gauge("cdvft_requests_waiting") == there)
                refused = alice.complete("tiny-llama")
                assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
                sent.append(sending.submit(bob.complete, "tiny-llama"))
            wait_until(lambda: live.gauge("cdvft_requests_waiting") == 34)
            refused = bob.complete("tiny-llama")  # has a sixteenth of the queue already
            assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
        assert [answer.result(WAIT).status_code for answer in sent] == [200] * 3


@pytest.mark.soak
@pytest.mark.parametrize("ask", ["complete", "model"])
def test_a_private_adapter_takes_as_long_as_one_that_is_missing(two: Two, ask: str) -> None:
    """Medians of 1,000 samples each, taken in turn."""
    times: dict[str, list[float]] = {PRIVATE: [], MISSING: []}
    for _ in range(1000):
        for model, own in times.items():
            start = time.perf_counter()
            assert ASKS[ask](two.alice, model).status_code == 404
            own.append(time.perf_counter() - start)
    private, missing = (statistics.median(own) for own in times.values())
    print(f"{ask}: private {private * 1e3:.3f} ms, missing {missing * 1e3:.3f} ms")
    assert abs(private / missing - 1) < 0.1


def test_a_stream_names_a_public_adapter(two: Two) -> None:
    answer = two.alice.complete("bob/open", stream=True, max_tokens=2)
    assert events_of(answer)[-1] == "[DONE]"
    assert answer.headers["x-adapter"] == "bob/open"
