"""Where adapters are: device, host and store; pins and preloading; a slow load that keeps nobody waiting."""

import logging
import random
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cdvft.backbone import Backbone
from cdvft.checkpoint import AdapterFiles, adapter_files
from cdvft.prepared import prepare_adapter

from tests.server.http.harness import Fleet, error_of
from tests.tiny import random_adapter

COUNT, ROOM = 9, 4  # adapters stored; of them on the device


def memory_for(base: Backbone, rows: int, task: Any = "lm") -> int:
    prepared = prepare_adapter(random_adapter(base.info, 0, task))
    return prepared.nbytes + rows * (prepared.nbytes + prepared.head_nbytes)


def start(tiny_server: Any, llama: Backbone, count: int = COUNT, **options: Any) -> Fleet:
    """Adapters a0, a1, ... on a device with room for ROOM."""
    fleet: Fleet = tiny_server(**{"adapter_memory": memory_for(llama, ROOM), "host_memory": 1 << 30, **options})
    for number in range(count):
        fleet.add(f"a{number}", random_adapter(llama.info, number))
    return fleet


def places(fleet: Fleet) -> dict[str, str]:
    rows = fleet.live.get("/v1/adapters", params={"limit": 100}).json()["data"]
    return {row["name"]: row["residency"] for row in sorted(rows, key=lambda row: row["name"])}


def on_device(fleet: Fleet) -> set[str]:
    return {name for name, place in places(fleet).items() if place == "device"}


def use(fleet: Fleet, *names: str) -> list[str]:
    texts = []
    for name in names:
        answer = fleet.live.complete(name)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-adapter-digest"] == fleet.adapters[name].digest
        texts.append(answer.json()["choices"][0]["text"])
    return texts


def pin(fleet: Fleet, name: str, pinned: Any = True) -> Any:
    return fleet.live.client.put(f"/v1/adapters/{name}", json={"pinned": pinned})


def loads(fleet: Fleet) -> dict[str, float]:
    return {
        source: fleet.live.gauge(f'cdvft_adapter_load_seconds_count{{source="{source}"}}')
        for source in ("host", "store")
    }


NAMES = [f"a{number}" for number in range(COUNT)]


def test_evicted_adapters_are_on_the_host_and_answer_the_same_from_there(tiny_server: Any, llama: Backbone) -> None:
    fleet = start(tiny_server, llama)
    assert set(places(fleet).values()) == {"store"}
    first = use(fleet, *NAMES)
    assert places(fleet) == {name: "host" if int(name[1]) < COUNT - ROOM else "device" for name in NAMES}
    assert loads(fleet) == {"host": 0, "store": COUNT}
    assert use(fleet, *NAMES) == first
    assert loads(fleet) == {"host": COUNT, "store": COUNT}
    gauge = fleet.live.gauge
    assert (gauge("cdvft_adapters_resident"), gauge("cdvft_adapters_on_host")) == (ROOM, COUNT - ROOM)
    assert gauge("cdvft_adapters_evicted_total") == 2 * COUNT - ROOM
    assert gauge("cdvft_adapters_evicted_from_host_total") == 0
    size = prepare_adapter(fleet.adapters["a0"]).nbytes
    assert gauge("cdvft_host_bytes_used") == (COUNT - ROOM) * size
    assert gauge("cdvft_host_bytes") == 1 << 30
    assert gauge('cdvft_adapter_load_seconds_bucket{le="+Inf",source="host"}') == COUNT
    assert gauge('cdvft_adapter_load_seconds_sum{source="store"}') > 0


def test_a_small_host_keeps_the_last_and_a_deleted_adapter_leaves_it(tiny_server: Any, llama: Backbone) -> None:
    size = prepare_adapter(random_adapter(llama.info, 0)).nbytes
    fleet = start(tiny_server, llama, host_memory=2 * size)
    use(fleet, *NAMES)
    assert places(fleet) == dict(zip(NAMES, ["store"] * 3 + ["host"] * 2 + ["device"] * 4, strict=True))
    assert fleet.live.gauge("cdvft_adapters_evicted_from_host_total") == 3
    for name in ("a3", "a4"):
        fleet.live.client.delete(f"/v1/adapters/{name}")
    assert fleet.live.gauge("cdvft_adapters_on_host") == fleet.live.gauge("cdvft_host_bytes_used") == 0


def test_without_a_host_they_come_from_the_store(tiny_server: Any, llama: Backbone) -> None:
    fleet = start(tiny_server, llama, host_memory=0)
    first = use(fleet, *NAMES)
    assert set(places(fleet).values()) == {"device", "store"}
    assert use(fleet, *NAMES) == first
    assert loads(fleet) == {"host": 0, "store": 2 * COUNT}


def test_a_slow_load_keeps_nobody_else_waiting(
    tiny_server: Any, llama: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = start(tiny_server, llama, 4)
    use(fleet, "a0")
    store = fleet.live.service._parts.store
    slow = store.get("default", "a1", llama.info.digest).id
    read, began, go_on = store.files, threading.Event(), threading.Event()

    def files(version_id: int) -> Any:
        if version_id == slow:
            began.set()
            assert go_on.wait(60)
        return read(version_id)

    monkeypatch.setattr(store, "files", files)
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(fleet.live.complete, "a1") for _ in range(3)]
        try:
            assert began.wait(60)
            use(fleet, "a0", "a2", "a3", "a0")  # warm, cold, cold, warm
            assert fleet.live.get("/ready").status_code == 200
            assert not any(answer.done() for answer in waiting)
        finally:
            go_on.set()
        assert [answer.result().status_code for answer in waiting] == [200] * 3
    assert loads(fleet)["store"] == 4  # three who waited, one load


def test_a_pinned_adapter_stays_and_is_there_after_a_restart(tiny_server: Any, llama: Backbone) -> None:
    fleet = start(tiny_server, llama)
    assert fleet.live.get("/v1/adapters/a0").json()["pinned"] is False
    answer = pin(fleet, "a0")
    assert answer.status_code == 200
    assert (answer.json()["id"], answer.json()["pinned"], answer.json()["residency"]) == ("a0", True, "device")
    assert pin(fleet, "a0").status_code == 200
    use(fleet, *NAMES[1:])
    assert "a0" in on_device(fleet)
    assert fleet.live.gauge("cdvft_adapters_pinned") == 1
    fleet.live.wait_until_idle()
    fleet.live.stop()
    again = tiny_server(adapter_memory=memory_for(llama, ROOM))
    again.adapters = fleet.adapters
    assert on_device(again) == {"a0"}
    assert again.live.gauge("cdvft_adapters_pinned") == 1
    assert pin(again, "a0", False).json()["pinned"] is False
    use(again, *NAMES[1:])
    assert "a0" not in on_device(again)
    assert again.live.gauge("cdvft_adapters_pinned") == 0


def test_a_pin_moves_with_latest(tiny_server: Any, llama: Backbone) -> None:
    fleet = start(tiny_server, llama, 6)
    live = fleet.live
    pin(fleet, "a0")
    second = live.upload("a0", _files(llama, 20)).json()
    assert second["version"] == 2

    def there() -> dict[int, tuple[str, bool]]:
        rows = live.get("/v1/adapters/a0/versions").json()["data"]
        return {row["version"]: (row["residency"], row["pinned"]) for row in rows}

    others = NAMES[1:6]
    assert there()[2] == ("device", True)
    use(fleet, *others)
    assert there() == {2: ("device", True), 1: ("host", False)}
    assert live.client.put("/v1/adapters/a0/aliases/latest", json={"version": 1}).status_code == 200
    use(fleet, *others)
    assert there() == {2: ("host", False), 1: ("device", True)}
    assert live.client.delete("/v1/adapters/a0", params={"version": 1}).status_code == 200
    use(fleet, *others)
    assert there() == {2: ("device", True)}
    assert live.client.delete("/v1/adapters/a0").status_code == 200
    assert live.gauge("cdvft_adapters_pinned") == 0
    assert live.upload("a0", _files(llama, 20)).json()["version"] == 3
    assert live.get("/v1/adapters/a0").json()["pinned"] is False


def _files(llama: Backbone, seed: int) -> AdapterFiles:
    return adapter_files(random_adapter(llama.info, seed), llama.info)


def test_two_names_of_one_content_pin_it_each(tiny_server: Any, llama: Backbone) -> None:
    fleet = start(tiny_server, llama, 6)
    fleet.add("copy", fleet.adapters["a0"])
    assert pin(fleet, "a0").status_code == pin(fleet, "copy").status_code == 200
    assert fleet.live.gauge("cdvft_adapters_pinned") == 1
    assert fleet.live.client.delete("/v1/adapters/copy").status_code == 200
    use(fleet, *NAMES[1:6])
    assert "a0" in on_device(fleet)
    fleet.add("copy", fleet.adapters["a0"])
    pin(fleet, "copy")
    pin(fleet, "a0", False)
    use(fleet, *NAMES[1:6])
    assert "a0" in on_device(fleet)


def test_pins_leave_room_for_one_more(tiny_server: Any, llama: Backbone) -> None:
    """Row 0 and ROOM rows; a stranger needs two rows: ROOM - 2 can be pinned."""
    fleet = start(tiny_server, llama)
    assert [pin(fleet, name).status_code for name in NAMES[: ROOM - 2]] == [200] * (ROOM - 2)
    refused = pin(fleet, "a5")
    error = error_of(refused)
    size = prepare_adapter(fleet.adapters["a0"]).nbytes
    assert (refused.status_code, error["code"]) == (409, "conflict")
    assert f"the 3 pinned adapters take {4 * size} bytes and must leave {2 * size}" in error["message"]
    assert f"the adapter memory has {5 * size} (--adapter-memory); unpin others first" in error["message"]
    described = fleet.live.get("/v1/adapters/a5").json()
    assert described["pinned"] is False
    use(fleet, *NAMES)
    assert on_device(fleet) >= {"a0", "a1"}
    pin(fleet, "a0", False)
    assert pin(fleet, "a5").status_code == 200
    fleet.add("stranger", random_adapter(llama.info, 3, targets=("q_proj", "k_proj")))
    use(fleet, "stranger", *NAMES, "stranger")
    assert on_device(fleet) >= {"a1", "a5", "stranger"}


def test_a_tenants_pins_leave_others_as_much_as_they_take(tiny_server: Any, llama: Backbone) -> None:
    """Who else has a key could use one adapter at a time otherwise. The operator may decide otherwise."""
    fleet = start(tiny_server, llama)
    keys = fleet.live.service._parts.store.keys
    tenants, operators = (keys.create("default", ["upload", *more], None, 0)[1] for more in ([], ["admin"]))
    path, pinned = "/v1/adapters/{}", {"pinned": True}
    with fleet.live.acting(tenants) as tenant, fleet.live.acting(operators) as operator:
        assert tenant.client.put(path.format("a0"), json=pinned).status_code == 200
        refused = tenant.client.put(path.format("a1"), json=pinned)
        assert (refused.status_code, error_of(refused)["code"]) == (409, "conflict")
        assert "more of the adapter memory than they leave to others" in error_of(refused)["message"]
        assert tenant.get(path.format("a1")).json()["pinned"] is False
        assert operator.client.put(path.format("a1"), json=pinned).status_code == 200
        assert tenant.client.put(path.format("a1"), json=pinned).status_code == 200  # it is there
        assert fleet.live.gauge("cdvft_adapters_pinned") == 2


def test_what_a_pin_may_be(decoder: Fleet) -> None:
    with decoder.unharmed():
        for body in ({}, {"pinned": 1}, {"pinned": "true"}, {"pinned": None}, {"pinned": True, "more": 1}, [], "x"):
            answer = decoder.live.client.put("/v1/adapters/writer", json=body)
            assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_request"), body
        for name in ("nobody", "tiny-llama", "writer@1"):
            answer = decoder.live.client.put(f"/v1/adapters/{name}", json={"pinned": True})
            assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found"), name


def test_a_pin_that_cannot_be_loaded_does_not_prevent_the_start(
    tiny_server: Any, llama: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = start(tiny_server, llama, 4)
    for name in ("a0", "a1"):
        assert pin(fleet, name).status_code == 200
    fleet.live.stop()
    with sqlite3.connect(fleet.folder / "store.db") as database:
        mine = "SELECT sha256 FROM version_files JOIN versions ON versions.id = version_id WHERE adapter_id = "
        database.execute(
            f"UPDATE blobs SET data = x'00' WHERE sha256 IN ({mine} (SELECT id FROM adapters WHERE name = 'a0'))"
            " AND size > 1000"
        )
    database.close()
    with caplog.at_level(logging.WARNING):
        again = tiny_server(adapter_memory=memory_for(llama, ROOM))
    assert "adapter a0@1 is pinned, and cannot be: adapter_unavailable" in caplog.text
    assert on_device(again) == {"a1"}
    assert again.live.get("/ready").status_code == 200
    assert error_of(again.live.complete("a0"))["code"] == "adapter_unavailable"
    again.live.stop()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        small = tiny_server(adapter_memory=memory_for(llama, 1))  # less than a pin and another need
    assert "adapter a1@1 is pinned, and cannot be: conflict" in caplog.text
    assert small.live.complete("a1").status_code == 200


def test_preloading_brings_the_last_used_first(
    tiny_server: Any, llama: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = start(tiny_server, llama)
    store = fleet.live.service._parts.store
    for time, name in enumerate(("a2", "a5", "a1")):
        store.count_hits({store.get("default", name, llama.info.digest).id: 1}, 1000 + time)
    fleet.live.stop()
    for wanted, expected in ((0, set()), (2, {"a1", "a5"}), (4, {"a1", "a5", "a2", "a8"})):
        live = tiny_server(adapter_memory=memory_for(llama, ROOM), preload=wanted).live
        assert on_device(Fleet(live, llama, fleet.folder)) == expected
        live.stop()
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        live = tiny_server(adapter_memory=memory_for(llama, ROOM), preload="all").live
    assert on_device(Fleet(live, llama, fleet.folder)) == {"a1", "a5", "a2", "a8"}
    assert f"preloaded {ROOM} of {COUNT} adapters" in caplog.text
    assert live.gauge("cdvft_adapters_evicted_total") == 0


def test_pins_and_what_moves_them_at_once(tiny_server: Any, llama: Backbone) -> None:
    """Whoever wins: in the end the device holds what the store says, and every answer was its adapter's."""
    fleet = start(tiny_server, llama, 3, adapter_memory=memory_for(llama, 12))
    files = [_files(llama, seed) for seed in range(5)]
    names = NAMES[:3]

    def act(rng: random.Random) -> int:
        name, version = rng.choice(names), rng.randint(1, 4)
        acts = [
            lambda: pin(fleet, name),
            lambda: pin(fleet, name, False),
            lambda: fleet.live.upload(name, rng.choice(files)),
            lambda: fleet.live.client.put(f"/v1/adapters/{name}/aliases/latest", json={"version": version}),
            lambda: fleet.live.client.delete(f"/v1/adapters/{name}", params={"version": version}),
            lambda: fleet.live.complete(name),
        ]
        return int(rng.choice(acts)().status_code)

    def work(seed: int) -> set[int]:
        rng = random.Random(seed)
        return {act(rng) for _ in range(20)}

    with ThreadPoolExecutor(4) as threads:
        codes = set().union(*threads.map(work, range(4)))
    assert codes <= {200, 201, 404, 409, 503}, codes
    fleet.live.wait_until_idle()
    service = fleet.live.service
    rows = service._parts.store.pinned(llama.info.digest)
    held = service._pins._held
    assert {row.adapter_id: row.digest for row in rows} == {key: row.digest for key, row in held.items()}
    assert all(service._parts.pool.is_resident(row.key) for row in rows)
    assert service._parts.pool.stats().pinned == len({row.digest for row in rows})
