"""Rows of the database that were damaged or edited: one adapter is unavailable until it comes again, nothing else."""

import sqlite3
from typing import Any

import pytest
from cdvft.checkpoint import adapter_files

from tests.server.http.harness import Fleet, error_of
from tests.tiny import random_adapter

VERSION = "(SELECT id FROM adapters WHERE name = 'bad')"
DAMAGES = {
    "an empty summary": "UPDATE versions SET summary = '{}' WHERE adapter_id = " + VERSION,
    "a list as summary": "UPDATE versions SET summary = '[1]' WHERE adapter_id = " + VERSION,
    "a summary that is no JSON": "UPDATE versions SET summary = '{' WHERE adapter_id = " + VERSION,
    "a summary of bytes": "UPDATE versions SET summary = x'ff00' WHERE adapter_id = " + VERSION,
    "a task that there is not": "UPDATE versions SET summary = replace(summary, 'lm', 'ml') WHERE adapter_id = "
    + VERSION,
    "a time of letters": "UPDATE versions SET created_at = 'then' WHERE adapter_id = " + VERSION,
    "a size of letters": "UPDATE versions SET bytes = 'many' WHERE adapter_id = " + VERSION,
    "labels that are none": "UPDATE versions SET form_labels = '3' WHERE adapter_id = " + VERSION,
    "a description of bytes": "UPDATE adapters SET description = x'ff' WHERE name = 'bad'",
}


@pytest.fixture
def fleet(tiny_server: Any) -> Fleet:
    started: Fleet = tiny_server()
    for seed, name in enumerate(("good", "bad", "other")):
        started.add(name, random_adapter(started.base.info, seed))
    return started


def damage(fleet: Fleet, statement: str) -> None:
    with sqlite3.connect(fleet.folder / "store.db") as database:
        database.execute(statement)
    database.close()


def refuse(fleet: Fleet) -> None:
    answers = [fleet.live.complete("bad"), fleet.live.complete("bad@1"), fleet.live.get("/v1/adapters/bad")]
    for answer in (*answers, fleet.live.get("/v1/models/bad")):
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (503, "adapter_unavailable"), error
        assert "adapter bad@1 is damaged in the store; upload it again" in error["message"]
        assert answer.headers["retry-after"]


def listed(fleet: Fleet) -> list[str]:
    names: list[str] = []
    more, after = True, {}
    while more:
        page = fleet.live.get("/v1/adapters", params={"limit": 1, **after}).json()
        names += [row["id"] for row in page["data"]]
        more, after = page["has_more"], {"after": page["last_id"]}
    return names


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_row(fleet: Fleet, what: str) -> None:
    damage(fleet, DAMAGES[what])
    refuse(fleet)
    assert listed(fleet) == ["other", "good"]
    assert fleet.live.get("/v1/adapters/bad/versions").json()["data"] == []
    models = [row["id"] for row in fleet.live.get("/v1/models").json()["data"]]
    assert models == ["tiny-llama", "other", "good"]
    assert fleet.live.complete("good").status_code == 200

    again = fleet.live.upload("bad", adapter_files(fleet.adapters["bad"], fleet.base.info))
    assert (again.status_code, again.json()["version"]) == (200, 1)
    assert fleet.live.complete("bad").status_code == 200
    assert fleet.live.get("/v1/adapters/bad").json()["digest"] == fleet.adapters["bad"].digest
    assert listed(fleet) == ["other", "bad", "good"]


def test_a_damaged_adapter_can_be_rolled_back_and_deleted(fleet: Fleet) -> None:
    fleet.add("bad", random_adapter(fleet.base.info, 7))
    damage(fleet, DAMAGES["an empty summary"] + " AND version = 2")
    rolled = fleet.live.client.put("/v1/adapters/bad/aliases/latest", json={"version": 1})
    assert (rolled.status_code, rolled.json()["version"]) == (200, 1)
    assert fleet.live.complete("bad").status_code == 200
    assert error_of(fleet.live.complete("bad@2"))["code"] == "adapter_unavailable"
    assert fleet.live.client.delete("/v1/adapters/bad", params={"version": 2}).status_code == 200
    assert fleet.live.client.delete("/v1/adapters/bad").status_code == 200


@pytest.mark.parametrize("value", ["cast(data AS TEXT) || 'x'", "cast(x'80ff00ff' AS TEXT)", "12"])
def test_files_that_are_no_bytes(fleet: Fleet, value: str) -> None:
    """Neither is an error of ours, nor do the stored bytes come out in a message."""
    used = "(SELECT sha256 FROM version_files JOIN versions ON versions.id = version_id WHERE adapter_id = " + VERSION
    damage(fleet, f"UPDATE blobs SET data = {value} WHERE sha256 IN {used} AND file = 'weights')")
    for answer in (fleet.live.complete("bad"), fleet.live.get("/v1/adapters/bad/download")):
        assert (answer.status_code, error_of(answer)["code"]) == (503, "adapter_unavailable")
        assert "no longer has the hash" in error_of(answer)["message"] or "damaged" in error_of(answer)["message"]
    assert fleet.live.complete("good").status_code == 200
    again = fleet.live.upload("bad", adapter_files(fleet.adapters["bad"], fleet.base.info))
    assert again.status_code == 200, again.text
    assert fleet.live.complete("bad").status_code == 200
    assert fleet.live.get("/v1/adapters/bad/download").status_code == 200


def test_a_database_that_was_replaced(fleet: Fleet) -> None:
    """Told by /ready and by whoever wants to write; what was stored is served on."""
    path = fleet.folder / "store.db"
    with sqlite3.connect(path) as database:
        database.execute(f"VACUUM INTO '{fleet.folder}/backup.db'")
    database.close()
    (fleet.folder / "backup.db").replace(path)
    upload = fleet.live.upload("new", adapter_files(fleet.adapters["bad"], fleet.base.info))
    moved = fleet.live.client.put("/v1/adapters/bad/aliases/prod", json={"version": 1})
    for answer in (fleet.live.get("/ready"), upload, moved, fleet.live.client.delete("/v1/adapters/bad")):
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (503, "store_unavailable"), error
        assert "removed or replaced while the server ran: restart the server" in error["message"]
        assert str(fleet.folder) not in error["message"]
    assert fleet.live.complete("good").status_code == 200
    assert fleet.live.get("/health").status_code == 200
