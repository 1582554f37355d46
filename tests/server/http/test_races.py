"""Deletes and moves that meet loads, merging and pins half-way."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cdvft.checkpoint import adapter_files
from cdvft_server.exceptions import StoreUnavailable
from cdvft_server.service.uploads import UploadForm
from cdvft_server.store import Store, cache_key

from tests.server.http.harness import WAIT, Fleet, wait_until
from tests.server.postgres import execute
from tests.tiny import random_adapter


class Gate:
    """The first call of a function waits until the gate is opened; others pass."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self._first = function, threading.Lock()
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._first.acquire(blocking=False):
            self.reached.set()
            assert self.opened.wait(WAIT)
        return self._function(*args, **kwargs)


@pytest.fixture
def fleet(tiny_server: Any) -> Fleet:
    """Two names of one content, which is only in the store."""
    fleet: Fleet = tiny_server(host_memory=0, merged_memory=1 << 24)
    for name in ("going", "staying"):
        fleet.add(name, random_adapter(fleet.base.info, 1))
    return fleet


@pytest.fixture
def store(fleet: Fleet) -> Store:
    return fleet.live.service._parts.store


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def delete(fleet: Fleet, name: str, background: ThreadPoolExecutor) -> Any:
    """Its answer to come; it is hidden when this returns."""
    deleting = background.submit(fleet.live.client.delete, f"/v1/adapters/{name}")
    wait_until(lambda: fleet.live.get(f"/v1/adapters/{name}").status_code == 404)
    return deleting


@pytest.mark.parametrize("mode", ["fft", "merged"])
def test_a_delete_during_a_load_leaves_another_name_of_the_same_content_alone(
    fleet: Fleet, store: Store, background: ThreadPoolExecutor, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both wait for the same load, of the deleted one's files."""

    def ask(name: str) -> Any:
        body = {"model": name, "prompt": "the cat", "temperature": 0}
        return fleet.live.post("/v1/completions", body, headers={"x-adapter-mode": mode})

    service = fleet.live.service
    key = cache_key("default", fleet.adapters["going"].digest)
    waited = service._residency._loads
    if mode == "merged":
        fleet.live.complete("going")  # it is loaded; what follows is the merging
        waited = service._merging._building
    gate = Gate(store.files)
    monkeypatch.setattr(store, "files", gate)
    first = background.submit(ask, "going")
    assert gate.reached.wait(WAIT)
    second = background.submit(ask, "staying")
    wait_until(lambda: fleet.live.get("/health") and waited[key].waiting == 2)
    deleting = delete(fleet, "going", background)
    gate.opened.set()
    assert first.result(WAIT).status_code == 404
    answer = second.result(WAIT)
    assert answer.status_code == 200, answer.text
    assert (answer.headers["x-adapter"], answer.headers["x-adapter-mode"]) == ("staying", mode)
    assert answer.json()["choices"] == fleet.live.complete("staying").json()["choices"]
    assert deleting.result(WAIT).status_code == 200
    fleet.live.wait_until_idle()


def test_what_is_deleted_while_it_is_pinned_is_not_pinned(
    fleet: Fleet, background: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fleet.live.client.delete("/v1/adapters/staying").status_code == 200
    assert fleet.live.client.put("/v1/adapters/going", json={"pinned": True}).status_code == 200
    assert fleet.live.gauge("cdvft_adapters_pinned") == 1
    pool = fleet.live.service._parts.pool
    gate = Gate(pool.place)
    monkeypatch.setattr(pool, "place", gate)
    uploading = background.submit(fleet.add, "going", random_adapter(fleet.base.info, 2))
    assert gate.reached.wait(WAIT)  # its new version is stored, and read for the device
    deleting = delete(fleet, "going", background)
    gate.opened.set()
    uploading.result(WAIT)
    assert deleting.result(WAIT).status_code == 200
    wait_until(lambda: fleet.live.gauge("cdvft_adapters_pinned") == 0)


def test_nor_is_what_goes_with_its_tenant(fleet: Fleet, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    service, base, pool = fleet.live.service, fleet.base.info, fleet.live.service._parts.pool

    def on_loop(work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, fleet.live.loop).result(WAIT)

    def put(seed: int) -> None:
        files = adapter_files(random_adapter(base, seed), base)
        service.uploads.put_now("guest", UploadForm("theirs", files=files))

    store.tenants.create("guest")
    put(3)
    on_loop(service._pins.set("guest", "theirs", True))
    wait_until(lambda: execute(fleet.live.config.database, "SELECT count(*) FROM receipts") == [(1,)])
    gate = Gate(pool.place)
    monkeypatch.setattr(pool, "place", gate)
    put(4)
    assert gate.reached.wait(WAIT)  # the pin is on its way to the new version
    store.tenants.remove("guest", with_adapters=True)
    wait_until(lambda: fleet.live.gauge("cdvft_adapters_pinned") == 0)
    gate.opened.set()
    on_loop(service._pins.follow("guest", "another"))  # after the one that was on its way
    wait_until(lambda: fleet.live.gauge("cdvft_adapters_pinned") == 0)


def test_a_pin_follows_a_move_whose_answer_was_lost(
    fleet: Fleet, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database has made it; the connection was cut before it could say so."""
    digests = [fleet.adapters["going"].digest, fleet.add("going", random_adapter(fleet.base.info, 2))["digest"]]
    assert fleet.live.client.put("/v1/adapters/going", json={"pinned": True}).status_code == 200
    move = store.set_alias

    def lost(*args: Any) -> None:
        move(*args)
        raise StoreUnavailable("the store cannot be used: its answer was lost")

    def pinned() -> list[bool]:
        residents = fleet.live.service._parts.pool._books.residents
        return [key in residents and residents[key].pinned for key in (cache_key("default", own) for own in digests)]

    assert pinned() == [False, True]
    monkeypatch.setattr(store, "set_alias", lost)
    assert fleet.live.client.put("/v1/adapters/going/aliases/latest", json={"version": 1}).status_code == 503
    wait_until(lambda: fleet.live.get("/v1/adapters/going").json()["version"] == 1 and pinned() == [True, False])
