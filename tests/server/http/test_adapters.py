"""Versions, aliases, lists, deletes, and where an adapter is."""

import json
import threading
from typing import Any

from cdvft.backbone import Backbone
from cdvft.checkpoint import adapter_files
from cdvft.prepared import prepare_adapter

from tests.server.http.harness import Fleet, error_of, wait_until
from tests.tiny import random_adapter


def put(fleet: Fleet, name: str, seed: int, **fields: str) -> dict[str, Any]:
    """Upload a random adapter as a new version."""
    files = adapter_files(random_adapter(fleet.base.info, seed), fleet.base.info)
    answer = fleet.live.upload(name, files, **fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


def row_bytes(base: Backbone) -> int:
    """Of one bank row; a bank has row 0 besides."""
    return prepare_adapter(random_adapter(base.info)).nbytes


def answered_by(fleet: Fleet, model: str) -> str:
    return fleet.live.complete(model).headers["x-adapter-digest"]


def test_versions_and_pointers(decoder: Fleet) -> None:
    """Promote, roll back, and the next upload moves latest on."""
    live = decoder.live
    digests = [put(decoder, "moving", seed)["digest"] for seed in (40, 41)]
    assert answered_by(decoder, "moving") == digests[1]
    promoted = live.client.put("/v1/adapters/moving/aliases/prod", json={"version": 1})
    assert promoted.status_code == 200
    assert promoted.json()["aliases"] == {"latest": 2, "prod": 1}
    assert answered_by(decoder, "moving@prod") == digests[0]
    rolled = live.client.put("/v1/adapters/moving/aliases/latest", json={"version": 1}).json()
    assert (rolled["version"], rolled["digest"]) == (1, digests[0])
    assert answered_by(decoder, "moving") == digests[0]
    third = put(decoder, "moving", 42, alias="prod")
    assert third["aliases"] == {"latest": 3, "prod": 3}
    assert [answered_by(decoder, f"moving@{i}") for i in (1, 2, 3)] == [*digests, third["digest"]]
    removed = live.client.delete("/v1/adapters/moving/aliases/prod").json()
    assert removed["aliases"] == {"latest": 3}
    assert live.complete("moving@prod").status_code == 404
    versions = live.get("/v1/adapters/moving/versions").json()
    assert [row["version"] for row in versions["data"]] == [3, 2, 1]
    first = live.get("/v1/adapters/moving/versions", params={"limit": 2}).json()
    assert (first["has_more"], first["last_id"]) == (True, "2")
    rest = live.get("/v1/adapters/moving/versions", params={"limit": 2, "after": first["last_id"]}).json()
    assert ([row["version"] for row in rest["data"]], rest["has_more"]) == ([1], False)


def test_deleting_versions(decoder: Fleet) -> None:
    live = decoder.live
    for seed in (43, 44, 45):
        put(decoder, "shrinking", seed)
    live.client.put("/v1/adapters/shrinking/aliases/prod", json={"version": 2})
    refused = live.client.delete("/v1/adapters/shrinking", params={"version": 2})
    assert (refused.status_code, error_of(refused)["code"]) == (409, "conflict")
    assert "prod" in error_of(refused)["message"]
    gone = live.client.delete("/v1/adapters/shrinking", params={"version": 3}).json()
    assert gone.items() >= {"id": "shrinking", "object": "adapter.deleted", "deleted": True}.items()
    assert gone["bytes_freed"] > 0
    assert live.get("/v1/adapters/shrinking").json()["aliases"] == {"latest": 2, "prod": 2}
    assert live.complete("shrinking@3").status_code == 404
    assert put(decoder, "shrinking", 46)["version"] == 4
    assert live.client.delete("/v1/adapters/shrinking").status_code == 200
    assert live.complete("shrinking@prod").status_code == 404
    assert live.client.delete("/v1/adapters/shrinking").status_code == 404
    assert put(decoder, "shrinking", 46)["version"] == 5


def test_lists_and_models(tiny_server: Any) -> None:
    fleet = tiny_server()
    live = fleet.live
    assert live.get("/v1/adapters").json() == {"object": "list", "data": [], "has_more": False, "last_id": None}
    digests = {name: put(fleet, name, seed)["digest"] for seed, name in enumerate("abcde")}
    put(fleet, "a", 9)
    first = live.get("/v1/adapters", params={"limit": 2}).json()
    second = live.get("/v1/adapters", params={"limit": 3, "after": first["last_id"]}).json()
    assert [row["id"] for row in first["data"] + second["data"]] == list("edcba")
    assert (first["has_more"], first["last_id"], second["has_more"]) == (True, "d", False)
    models = live.get("/v1/models").json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == ["tiny-llama", *"edcba"]
    assert [model["id"] for model in models["data"] if model["parent"] is None] == ["tiny-llama"]
    (b,) = (model for model in models["data"] if model["id"] == "b")
    assert b.items() >= {"object": "model", "parent": "tiny-llama", "root": digests["b"]}.items()
    for path in ("a@1", "tiny-llama:a@1", f"a@{digests['a']}", "default/a@1"):
        assert live.get(f"/v1/models/{path}").json()["root"] == digests["a"]
    base = live.get("/v1/models/tiny-llama").json()
    assert (base["parent"], base["root"]) == (None, fleet.base.info.digest)


def test_residency_and_hits(tiny_server: Any) -> None:
    fleet = tiny_server()
    put(fleet, "used", 1)
    fresh = fleet.live.get("/v1/adapters/used").json()
    assert (fresh["residency"], fresh["hits"], fresh["last_used"]) == ("store", 0, None)
    for _ in range(3):
        fleet.live.complete("used")
    used = fleet.live.get("/v1/adapters/used").json()
    assert (used["residency"], used["hits"]) == ("device", 3)
    assert used["last_used"] >= used["created_at"]
    parts = fleet.live.service._parts
    wait_until(lambda: parts.store.get("default", "used", fleet.base.info.digest).hits == 3)
    assert fleet.live.get("/v1/adapters/used").json()["hits"] == 3


def test_hits_survive_a_stop(tiny_server: Any) -> None:
    fleet = tiny_server()
    put(fleet, "used", 1)
    fleet.live.complete("used")
    fleet.live.stop()
    again = tiny_server()
    assert again.live.get("/v1/adapters/used").json()["hits"] == 1


def test_a_delete_hides_at_once_and_waits_for_who_uses_it(decoder: Fleet) -> None:
    """The stream that runs keeps its weights to its end; the row goes when it is over."""
    live = decoder.live
    digest = put(decoder, "leaving", 50)["digest"]
    alone = live.complete("leaving", max_tokens=240, ignore_eos=True).json()["choices"][0]["text"]
    pool = live.service._parts.pool
    body = {"model": "leaving", "prompt": "the cat", "temperature": 0, "max_tokens": 240, "ignore_eos": True}
    with live.client.stream("POST", "/v1/completions", json={**body, "stream": True}) as stream:
        lines = stream.iter_lines()
        texts = [next(lines)]
        answers: list[Any] = []
        deleting = threading.Thread(target=lambda: answers.append(live.client.delete("/v1/adapters/leaving")))
        deleting.start()
        wait_until(lambda: live.complete("leaving").status_code == 404)
        texts += list(lines)
    deleting.join()
    assert answers[0].status_code == 200
    chunks = [json.loads(line[6:]) for line in texts if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == alone
    assert stream.headers["x-adapter-digest"] == digest
    assert not pool.is_resident(f"default/{digest}")


def test_a_delete_does_not_wait_for_ever(tiny_server: Any) -> None:
    fleet = tiny_server(delete_wait_seconds=0.2)
    put(fleet, "busy", 1)
    flight = fleet.live.service._parts.flights.open("default", "busy")
    flight.version_id = fleet.live.service._parts.store.get("default", "busy", fleet.base.info.digest).id
    assert fleet.live.client.delete("/v1/adapters/busy").status_code == 200
    flight._flights._open.discard(flight)


def test_more_adapters_than_fit(llama: Backbone, tiny_server: Any) -> None:
    """A memory for a few: all are served in turn, the least recently used leave."""
    fleet = tiny_server(adapter_memory=5 * row_bytes(llama), host_memory=2 * row_bytes(llama))
    for seed in range(12):
        put(fleet, f"n{seed}", seed)
    first = [fleet.live.complete(f"n{seed}").json()["choices"][0]["text"] for seed in range(12)]
    assert fleet.live.gauge("cdvft_adapters_evicted_total") > 0
    assert [fleet.live.complete(f"n{seed}").json()["choices"][0]["text"] for seed in range(12)] == first
    residency = [fleet.live.get(f"/v1/adapters/n{seed}").json()["residency"] for seed in range(12)]
    assert residency[-1] == "device"
    assert set(residency) == {"device", "host", "store"}


def test_a_memory_that_is_all_in_use(llama: Backbone, tiny_server: Any) -> None:
    """503 overloaded after the wait; room comes when a request ends."""
    fleet = tiny_server(adapter_memory=2 * row_bytes(llama), pool_wait_seconds=0.3)
    for seed in range(2):
        put(fleet, f"n{seed}", seed)
    pool = fleet.live.service._parts.pool
    assert fleet.live.complete("n0").status_code == 200
    lease = pool.acquire("default/" + fleet.live.get("/v1/adapters/n0").json()["digest"])
    assert lease is not None
    refused = fleet.live.complete("n1")
    assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert fleet.live.complete("n0").status_code == 200
    lease.release()
    assert fleet.live.complete("n1").status_code == 200


def test_concurrent_first_requests_load_once(tiny_server: Any) -> None:
    fleet = tiny_server()
    put(fleet, "cold", 1)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(fleet.live.complete("cold"))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
    assert fleet.live.gauge("cdvft_adapters_placed_total") == 1
    fleet.live.wait_until_idle()
