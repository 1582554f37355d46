"""`/v1/admin`: tenants and keys over HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cdvft_server import answers

from tests.server.http.conftest import config_for
from tests.server.http.harness import Fleet, Live, error_of
from tests.tiny import random_adapter

TENANTS, KEYS = "/v1/admin/tenants", "/v1/admin/keys"


@pytest.fixture
def fleet(tiny_server: Any) -> Fleet:
    return tiny_server()


@pytest.fixture
def operator(fleet: Fleet) -> Iterator[Live]:
    with acting(fleet.live) as live:
        yield live


@contextmanager
def acting(live: Live) -> Iterator[Live]:
    """With a key for all of it."""
    with live.acting(live.service._parts.store.keys.create("default", ["admin"], None, 0)[1]) as operator:
        yield operator


def test_tenants_and_their_keys(fleet: Fleet, operator: Live) -> None:
    made = operator.post(TENANTS, {"name": "acme", "max_adapters": 1, "weight": 2})
    assert made.status_code == 201
    body = answers.TenantBody.model_validate(made.json())
    assert (body.name, body.max_adapters, body.max_bytes, body.weight, body.adapters) == ("acme", 1, None, 2.0, 0)
    assert operator.get(f"{TENANTS}/acme").json() == made.json()
    again = operator.post(TENANTS, {"name": "acme"})
    assert (again.status_code, error_of(again)["code"]) == (409, "conflict")
    changed = operator.client.put(f"{TENANTS}/acme", json={"max_adapters": None, "max_concurrent": 4}).json()
    assert (changed["max_adapters"], changed["max_concurrent"], changed["weight"]) == (None, 4, 2.0)
    page = answers.TenantList.model_validate(operator.get(TENANTS, params={"limit": 1}).json())
    assert ([row.id for row in page.data], page.has_more, page.last_id) == (["acme"], True, "acme")
    rest = operator.get(TENANTS, params={"after": "acme"}).json()
    assert ([row["id"] for row in rest["data"]], rest["has_more"]) == (["default"], False)

    made = operator.post(KEYS, {"tenant": "acme", "scopes": ["upload", "infer"], "expires": "90d"})
    assert made.status_code == 201
    key = answers.KeySecret.model_validate(made.json())
    assert key.expires_at == key.created_at + 90 * 86400
    told = operator.get(f"{KEYS}/{key.id}").json()
    assert told == {name: value for name, value in made.json().items() if name != "key"}
    assert operator.get(KEYS, params={"tenant": "acme"}).json()["data"] == [told]
    assert key.key not in operator.get(KEYS).text
    with fleet.live.acting(key.key) as acme:
        assert Fleet(acme, fleet.base, fleet.folder).add("poet", random_adapter(fleet.base.info, 1))["version"] == 1
        assert acme.complete("poet").status_code == 200
        refused = operator.client.delete(f"{TENANTS}/acme")
        assert (refused.status_code, error_of(refused)["code"]) == (409, "conflict")
        assert fleet.live.gauge("cdvft_adapters_resident") == 1
        gone = operator.client.delete(f"{TENANTS}/acme", params={"with_adapters": "true"})
        assert answers.TenantDeleted.model_validate(gone.json()).adapters_deleted == 1
        assert fleet.live.gauge("cdvft_adapters_resident") == 0
        assert acme.complete("poet").status_code == 401


def test_an_operator_sees_what_every_tenant_used(fleet: Fleet, operator: Live) -> None:
    operator.post(TENANTS, {"name": "acme"})
    secrets = [operator.post(KEYS, {"tenant": name}).json()["key"] for name in ("acme", "default")]
    for secret in secrets:
        with fleet.live.acting(secret) as own:
            assert own.complete("tiny-llama").status_code == 200

    def used(live: Live, **query: str) -> dict[str, int]:
        answer = live.get("/v1/usage", params={"group_by": "tenant", **query})
        return {row["tenant"]: row["requests"] for row in answer.json()["data"]}

    assert used(operator, tenant="*") == {"acme": 1, "default": 1}
    assert used(operator, tenant="acme") == {"acme": 1}
    with fleet.live.acting(secrets[0]) as acme:
        assert used(acme) == {"acme": 1}
        refused = acme.get("/v1/usage", params={"tenant": "default"})
        assert (refused.status_code, error_of(refused)["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", f"{TENANTS}/no", None, 404, "not_found"),
        ("PUT", f"{TENANTS}/no", {"weight": 2}, 404, "not_found"),
        ("DELETE", f"{TENANTS}/no", None, 404, "not_found"),
        ("DELETE", f"{TENANTS}/default?with_adapters=true", None, 409, "conflict"),
        ("GET", f"{TENANTS}?after=no", None, 404, "not_found"),
        ("GET", f"{TENANTS}?limit=101", None, 400, "invalid_request"),
        ("POST", TENANTS, {"name": "a b"}, 400, "invalid_request"),
        ("POST", TENANTS, {"name": "a", "max_adapters": -1}, 400, "invalid_request"),
        ("POST", TENANTS, {"name": "a", "requests_per_minute": 0}, 400, "invalid_request"),
        ("POST", TENANTS, {"name": "a", "weight": 0}, 400, "invalid_request"),
        ("POST", TENANTS, {"name": "a", "colour": "red"}, 400, "invalid_request"),
        ("GET", f"{KEYS}/key_no", None, 404, "not_found"),
        ("DELETE", f"{KEYS}/key_no", None, 404, "not_found"),
        ("POST", f"{KEYS}/key_no/rotate", {}, 404, "not_found"),
        ("GET", f"{KEYS}?after=key_no", None, 404, "not_found"),
        ("POST", KEYS, {"tenant": "no"}, 404, "not_found"),
        ("POST", KEYS, {"tenant": "default", "scopes": []}, 400, "invalid_request"),
        ("POST", KEYS, {"tenant": "default", "scopes": ["infer", "infer"]}, 400, "invalid_request"),
        ("POST", KEYS, {"tenant": "default", "scopes": ["fly"]}, 400, "invalid_request"),
        ("POST", KEYS, {"tenant": "default", "expires": "soon"}, 400, "invalid_request"),
        ("POST", KEYS, {"tenant": "default", "expires": 10}, 400, "invalid_request"),
    ],
)
def test_what_an_operator_can_get_wrong(
    shared: Live, *, method: str, path: str, body: Any, status: int, code: str
) -> None:
    answer = shared.client.request(method, path, json=body)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code), answer.text


@pytest.fixture(scope="module")
def shared(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server for all that changes nothing."""
    with Live(config_for(llama, tmp_path_factory.mktemp("admin"))) as live, acting(live) as operator:
        yield operator
