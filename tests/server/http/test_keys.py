"""Who gets in: keys, scopes, expiry, rotation, the flag; and what a server says that needs a key."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from cdvft.backbone import Backbone
from cdvft_server.app import create_app
from cdvft_server.cli.announce import ANYBODY, NEEDED, announcement
from cdvft_server.config import ServeConfig, default_database
from cdvft_server.errors import ApiError
from cdvft_server.exceptions import StoreUnavailable
from cdvft_server.service.access import Access, Caller
from cdvft_server.service.workers import Workers
from cdvft_server.store import Store, TenantLimits

from tests.server.http.conftest import config_for
from tests.server.http.harness import Fleet, error_of
from tests.tiny import random_adapter

OPEN = ("/", "/health", "/ready", "/metrics", "/openapi.json")


def key_of(fleet: Fleet, *scopes: str, tenant: str = "default", expires: int | None = None) -> str:
    return fleet.live.service._parts.store.keys.create(tenant, scopes, expires, 0)[1]


def refused(answer: Any) -> str:
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    return str(error["message"])


def test_from_the_first_key_on_one_is_needed(tiny_server: Any) -> None:
    """At once, in a server that runs; what a key may do is in its scopes, and nobody is in the way of a browser."""
    live = (fleet := tiny_server()).live
    fleet.add("writer", random_adapter(fleet.base.info, 1))
    assert live.complete("writer").status_code == 200
    admin = live.get("/v1/admin/keys")
    assert (admin.status_code, error_of(admin)["code"]) == (403, "forbidden")
    assert "without a key nobody has the scope admin" in error_of(admin)["message"]
    infer, upload = key_of(fleet, "infer"), key_of(fleet, "upload")
    assert "there is no API key" in refused(live.complete("writer"))
    assert {live.get(path).status_code for path in OPEN} == {200}
    assert live.get("/health", headers={"host": "models.example", "origin": "http://page.example"}).status_code == 200
    for sent in (
        "Bearer",
        "Bearer none",
        f"Basic {infer}",
        infer,
        f"Bearer {infer}x",
        f"Bearer {infer[:-1]}",
        "Bearer é",
    ):
        refused(live.get("/v1/models", headers={"authorization": sent.encode()}))
    twice = [("authorization", f"Bearer {infer}")] * 2
    for odd in (twice, {"authorization": infer}, {"authorization": f"Basic {infer}"}):
        assert "is not 'Bearer KEY', or is there more than once" in refused(live.client.get("/v1/models", headers=odd))
    for path in ("/nowhere", "/v1/admin/keys", "/v1/adapters/writer"):
        refused(live.get(path))
    with live.acting(infer) as mine:
        assert mine.complete("writer").status_code == 200
        foreign = {"host": "models.example", "origin": "http://page.example"}
        assert mine.get("/v1/models", headers=foreign).status_code == 200
        assert mine.get("/v1/adapters/writer").status_code == 200
        assert mine.get("/nowhere").status_code == 404
        for method, path in (("POST", "/v1/adapters"), ("DELETE", "/v1/adapters/writer"), ("GET", "/v1/admin/tenants")):
            answer = mine.client.request(method, path)
            assert (answer.status_code, error_of(answer)["code"]) == (403, "forbidden"), path
            assert f"lacks the scope {'admin' if 'admin' in path else 'upload'}" in error_of(answer)["message"]
        assert mine.get("/v1/adapters/writer/download").status_code == 403
    with live.acting(upload) as mine:
        assert mine.get("/v1/adapters/writer/download").status_code == 200
        assert mine.complete("writer").status_code == 403
        assert mine.get("/v1/models").status_code == 200


def test_revoked_expired_and_cleared(tiny_server: Any) -> None:
    live = (fleet := tiny_server()).live
    keys = live.service._parts.store.keys
    late = key_of(fleet, "infer", expires=10)
    admin = key_of(fleet, "admin", "infer")
    gone = key_of(fleet, "infer")
    with live.acting(late) as mine:
        assert "has expired" in refused(mine.get("/v1/models"))
    with live.acting(gone) as mine, live.acting(admin) as operator:
        assert mine.get("/v1/models").status_code == 200
        ids = {row["prefix"]: row["id"] for row in operator.get("/v1/admin/keys").json()["data"]}
        answer = operator.client.delete(f"/v1/admin/keys/{ids[gone[:12]]}")
        assert answer.json()["revoked_at"]
        assert "was revoked" in refused(mine.get("/v1/models"))
        keys.revoke(ids[admin[:12]], 0)
        refused(operator.get("/v1/admin/keys"))
        refused(live.get("/v1/models"))  # the flag stays, though no key is left
        keys.allow_unauthenticated()
        assert live.get("/v1/models").status_code == 200
        assert live.get("/v1/models", headers={"authorization": "Bearer none"}).status_code == 200
        assert live.get("/v1/models", headers={"host": "models.example"}).status_code == 403
        refused(mine.get("/v1/models"))  # a key of ours is never taken for none


def test_a_key_is_rotated_while_it_is_used(tiny_server: Any) -> None:
    live = (fleet := tiny_server()).live
    with live.acting(key_of(fleet, "admin")) as operator, live.acting(key_of(fleet, "infer")) as old:
        ids = [row["id"] for row in operator.get("/v1/admin/keys").json()["data"]]
        answer = operator.post(f"/v1/admin/keys/{ids[0]}/rotate", {"overlap": 3600})
        assert answer.status_code == 201
        made = answer.json()
        assert (made["scopes"], made["replaces"]["id"]) == (["infer"], ids[0])
        assert made["replaces"]["expires_at"] > time.time() + 3000
        with live.acting(made["key"]) as new:
            assert old.get("/v1/models").status_code == new.get("/v1/models").status_code == 200
            operator.post(f"/v1/admin/keys/{ids[0]}/rotate", {"overlap": 0})
            refused(old.get("/v1/models"))
            assert new.get("/v1/models").status_code == 200


def test_what_is_known_holds_until_anybody_writes(tiny_server: Any, llama: Backbone) -> None:
    """Keys and names that were just used, and what another process does to them: never a request too late."""
    fleet = tiny_server()
    fleet.add("own", random_adapter(llama.info, 1), alias="prod")
    fleet.add("own", random_adapter(llama.info, 2))
    store = Store.open(fleet.live.config.database)
    row, secret = store.keys.create("default", ["infer"], None, 0)
    with fleet.live.acting(secret) as live:
        for number in range(20):
            for _ in range(3):
                answer = live.complete("own@prod", max_tokens=1)
                assert (answer.status_code, answer.headers["x-adapter-version"]) == (200, str(number % 2 + 1))
            store.set_alias("default", "own", "prod", 2 - number % 2, llama.info.digest)
        assert live.complete("own", max_tokens=1).status_code == 200
        store.delete("default", "own", None, llama.info.digest)
        assert live.complete("own", max_tokens=1).status_code == 404
        store.keys.revoke(row.id, int(time.time()))
        refused(live.complete("own", max_tokens=1))
    store.close()


def test_an_open_host_needs_keys_and_says_so(llama: Backbone, tmp_path: Path, tiny_server: Any) -> None:
    config = config_for(llama, tmp_path, host="0.0.0.0")
    store = Store.open(config.database)
    secret = store.keys.create("default", ["infer", "upload"], None, 0)[1]
    create_app(config)
    live = tiny_server(host="0.0.0.0").live
    told = announcement(live.url, embedded=False, database=config.database).splitlines()
    assert told == [
        f"ready on {live.url.replace('0.0.0.0', '127.0.0.1')}",
        f"{NEEDED}: cdvft keys create --tenant default --database {config.database}",
    ]
    hidden = announcement(live.url, embedded=False, database="postgresql://me:secret@db/cdvft?a=b c")
    assert hidden.endswith("--tenant default --database 'postgresql://me:***@db/cdvft?a=b+c'")
    assert announcement(live.url, embedded=False, database=default_database()).endswith("--tenant default")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDVFT_API_KEY", secret)
        told = announcement(live.url, embedded=False, database=config.database).splitlines()
    assert told[1] == NEEDED
    assert '-H "authorization: Bearer $CDVFT_API_KEY"' in told[3]
    assert secret not in str(told)
    store.keys.allow_unauthenticated()
    store.close()
    assert live.get("/v1/models").status_code == 401  # nobody allowed it on this host
    live.stop()
    live = tiny_server(host="0.0.0.0", allow_unauthenticated=True).live
    assert announcement(live.url, embedded=False, database=config.database).splitlines()[1].startswith(ANYBODY)


def test_while_the_store_is_away_the_last_answer_holds_for_a_minute(tmp_path: Path) -> None:
    store, now = Store.open(f"sqlite:///{tmp_path}/store.db"), [0.0]
    store.tenants.create("acme", TenantLimits(max_concurrent=3), 2.0)
    known = store.keys.create("acme", ["infer"], 150, 100)[1]
    unseen = store.keys.create("acme", ["infer"], None, 100)[1]

    async def scenario() -> None:
        workers = Workers(1)
        access = Access(ServeConfig(), store, workers, now=lambda: 100 + now[0], clock=lambda: now[0])
        expected = Caller("acme", frozenset({"infer"}), store.keys.page()[0][1].id, 2.0, TenantLimits(max_concurrent=3))
        assert await access.resolve([f"Bearer {known}"]) == expected
        store.close()
        now[0] = 40.0
        assert await access.resolve([f"bearer  {known} "]) == expected
        assert access.required
        with pytest.raises(StoreUnavailable):
            await access.resolve([f"Bearer {unseen}"])
        now[0] = 51.0  # what is known of it is that it ends
        with pytest.raises(ApiError, match="has expired"):
            await access.resolve([f"Bearer {known}"])
        now[0] = ServeConfig().stale_seconds + 1
        with pytest.raises(StoreUnavailable):
            await access.resolve([f"Bearer {known}"])
        workers.close()

    asyncio.run(scenario())
