"""A server whose database goes away and comes back."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from cdvft.backbone import Backbone
from cdvft.checkpoint import adapter_files
from cdvft_server.config import ServeConfig
from cdvft_server.store import cache_key

from tests.server.http.harness import Fleet, Live, error_of, wait_until
from tests.server.postgres import SECONDS, Postgres
from tests.server.proxy import Proxy
from tests.tiny import random_adapter


@pytest.fixture(scope="module")
def proxy(postgres_server: Postgres | None) -> Iterator[Proxy]:
    if postgres_server is None:
        pytest.skip("PostgreSQL's server (initdb, pg_ctl) is not installed")
    with Proxy(str(postgres_server.folder / ".s.PGSQL.5432")) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def fleet(
    proxy: Proxy, postgres_server: Postgres, llama: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """Adapters: near (lm) and judge (labels)."""
    with postgres_server.database() as url:
        far = f"postgresql://cdvft@127.0.0.1:{proxy.port}/{url.split('@/')[1].split('?')[0]}?connect_timeout={SECONDS}"
        config = ServeConfig(base=str(llama.path), port=0, database=far, drain_seconds=5, host_memory=0)
        with Live(config) as live:
            live.service._parts.last_known._clock = lambda: 0.0  # a minute passes when a test says so
            fleet = Fleet(live, llama, tmp_path_factory.mktemp("outage"))
            fleet.add("near", random_adapter(llama.info, 1))
            fleet.add("judge", random_adapter(llama.info, 2, "classification"))
            yield fleet


@pytest.fixture
def cut(proxy: Proxy, fleet: Fleet) -> Iterator[Proxy]:
    """The proxy, for a test that cuts it; then it is restored, and the server is ready again."""
    yield proxy
    proxy.restore()
    wait_until(lambda: fleet.live.get("/ready").status_code == 200)


def away(answer: Any) -> None:
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (503, "store_unavailable"), error
    assert int(answer.headers["retry-after"]) >= 1
    assert "127.0.0.1" not in error["message"]


def test_an_outage(fleet: Fleet, cut: Proxy) -> None:
    live, base = fleet.live, fleet.base.info
    before, judged = live.complete("near"), live.classify("judge")
    fleet.add("cold", random_adapter(base, 3))
    live.classify(["judge", "judge"], ["the cat", "the dog"])
    assert live.complete("cold").status_code == 200
    live.service._residency.discard(cache_key("default", fleet.adapters["cold"].digest))
    assert "x-adapter-stale" not in before.headers

    cut.cut()
    during = live.complete("near")
    assert (during.status_code, during.headers["x-adapter-stale"]) == (200, "1")
    assert during.json()["choices"] == before.json()["choices"]
    for name, value in before.headers.items():
        if name.startswith("x-adapter"):
            assert during.headers[name] == value
    labelled = live.classify("judge")
    assert (labelled.json()["data"], labelled.headers["x-adapter-stale"]) == (judged.json()["data"], "1")
    several = live.classify(["judge", "judge"], ["the cat", "the dog"])
    assert {name for name in several.headers if name.startswith("x-adapter")} == {"x-adapter-stale"}
    base_answer = live.complete("tiny-llama")
    assert base_answer.status_code == 200
    assert "x-adapter-stale" not in base_answer.headers  # nothing was looked up
    for answer in (
        live.complete("cold"),  # known, and neither on the device nor on the host
        live.complete("never-asked-for"),
        live.complete("near@1"),  # this name was not resolved before
        live.get("/v1/adapters"),
        live.get("/v1/models/near"),
        live.get("/ready"),
        live.upload("new", adapter_files(fleet.adapters["near"], base)),
        live.client.put("/v1/adapters/near/aliases/prod", json={"version": 1}),
        live.client.delete("/v1/adapters/near"),
    ):
        away(answer)
    assert live.get("/health").status_code == 200
    with live.client.stream("POST", "/v1/completions", json={"model": "near", "prompt": "a", "stream": True}) as stream:
        assert stream.headers["x-adapter-stale"] == "1"
        assert list(stream.iter_lines())[-2] == "data: [DONE]"

    cut.restore()
    wait_until(lambda: live.get("/ready").status_code == 200)
    again = live.complete("near")
    assert (again.status_code, again.json()["choices"]) == (200, before.json()["choices"])
    assert "x-adapter-stale" not in again.headers
    assert live.complete("cold").status_code == 200
    live.wait_until_idle()


def test_uses_during_an_outage_are_counted(fleet: Fleet, cut: Proxy) -> None:
    live, store = fleet.live, fleet.live.service._parts.store
    fleet.add("counted", random_adapter(fleet.base.info, 5))

    def stored() -> int:
        return store.get("default", "counted", fleet.base.info.digest).hits

    assert live.complete("counted").status_code == 200
    wait_until(lambda: stored() == 1)  # else the cut may come between a commit and its answer
    cut.cut()
    for _ in range(3):
        assert live.complete("counted").headers["x-adapter-stale"] == "1"
    cut.restore()
    wait_until(lambda: live.get("/ready").status_code == 200)
    wait_until(lambda: stored() == 4)
    assert live.get("/v1/adapters/counted").json()["hits"] == 4


def test_what_was_deleted_before_it_is_not_served_in_it(fleet: Fleet, cut: Proxy) -> None:
    live = fleet.live
    fleet.add("gone", random_adapter(fleet.base.info, 4))
    assert live.complete("gone").status_code == 200
    assert live.client.delete("/v1/adapters/gone").status_code == 200
    cut.cut()
    away(live.complete("gone"))
    del fleet.adapters["gone"]


def test_a_minute_later_it_is_no_longer_used(fleet: Fleet, cut: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    live = fleet.live
    known = live.service._parts.last_known
    assert live.complete("near").status_code == 200
    cut.cut()
    assert live.complete("near").headers["x-adapter-stale"] == "1"
    monkeypatch.setattr(known, "_clock", lambda: known._seconds)
    assert live.complete("near").headers["x-adapter-stale"] == "1"
    monkeypatch.setattr(known, "_clock", lambda: known._seconds + 0.1)
    away(live.complete("near"))
    assert live.get("/health").status_code == 200


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_half_a_minute_under_load(fleet: Fleet, cut: Proxy) -> None:
    """Every request is answered, with the same text, the whole time; and no hit is lost in the end."""
    live = fleet.live
    expected = live.complete("near").json()["choices"]
    hits = live.get("/v1/adapters/near").json()["hits"]
    stop, counts, wrong = threading.Event(), [0] * 4, []

    def ask(worker: int) -> None:
        while not stop.is_set():
            answer = live.complete("near")
            counts[worker] += 1
            if answer.status_code != 200 or answer.json()["choices"] != expected:
                wrong.append(answer.text)

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(len(counts))]
    for thread in threads:
        thread.start()
    wait_until(lambda: sum(counts) > 20)
    cut.cut()
    stop.wait(30)
    cut.restore()
    wait_until(lambda: live.get("/ready").status_code == 200)
    after = sum(counts)
    wait_until(lambda: sum(counts) > after + 20)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert "x-adapter-stale" not in live.complete("near").headers
    wait_until(lambda: live.get("/v1/adapters/near").json()["hits"] >= hits + sum(counts) + 1)
