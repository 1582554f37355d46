"""Tenants and keys: what each call sends and what it makes of the answer."""

from collections.abc import Callable
from typing import Any

import cdvft_client as c
import httpx
import pytest

from tests.client.harness import HEADERS, Script

Connect = Callable[..., Any]
LIMITS = {
    "max_adapters": 3,
    "max_bytes": None,
    "requests_per_minute": None,
    "tokens_per_minute": 100,
    "max_concurrent": None,
}
TENANT = {"id": "acme", "object": "tenant", "name": "acme", "weight": 1.0, "adapters": 2, "bytes": 9, "created_at": 5}
KEY = {
    "id": "key_1",
    "object": "key",
    "tenant": "acme",
    "prefix": "cdvft-abc",
    "scopes": ["infer"],
    "created_at": 5,
    "expires_at": 9,
    "revoked_at": None,
}


def ok(body: Any, status: int = 200) -> Script:
    return Script(httpx.Response(status, json=body, headers=HEADERS))


def line(script: Script) -> str:
    (request,) = script.requests
    return f"{request.method} {request.url.raw_path.decode()}"


@pytest.mark.parametrize(
    ("call", "sent", "body"),
    [
        (lambda client: client.tenant("acme"), "GET /v1/admin/tenants/acme", None),
        (
            lambda client: client.create_tenant("acme", max_adapters=3),
            "POST /v1/admin/tenants",
            {"name": "acme", "max_adapters": 3},
        ),
        (
            lambda client: client.set_tenant("acme", max_adapters=None, weight=2),
            "PUT /v1/admin/tenants/acme",
            {"max_adapters": None, "weight": 2},
        ),
    ],
)
def test_tenants(connect: Connect, call: Any, sent: str, body: Any) -> None:
    script = ok({**TENANT, **LIMITS})
    tenant = call(connect(transport=script.transport))
    assert line(script) == sent
    assert body is None or script.sent == body
    assert tenant == c.Tenant("acme", 3, None, None, 100, None, 1.0, 2, 9, 5, {})


@pytest.mark.parametrize(
    ("call", "sent", "body"),
    [
        (lambda client: client.key("key_1"), "GET /v1/admin/keys/key_1", None),
        (lambda client: client.revoke_key("key_1"), "DELETE /v1/admin/keys/key_1", None),
        (
            lambda client: client.create_key("acme", ["infer"], expires="90d"),
            "POST /v1/admin/keys",
            {"tenant": "acme", "scopes": ["infer"], "expires": "90d"},
        ),
    ],
)
def test_keys(connect: Connect, call: Any, sent: str, body: Any) -> None:
    script = ok({**KEY, "key": "cdvft-abcdef"} if body else KEY)
    key = call(connect(transport=script.transport))
    assert line(script) == sent
    assert body is None or script.sent == body
    assert key == c.Key(
        "key_1", "acme", "cdvft-abc", ("infer",), 5, 9, None, "cdvft-abcdef" if body else None, None, {}
    )
    assert "cdvft-abcdef" not in repr(key)


def test_rotation_and_removal(connect: Connect) -> None:
    script = ok({**KEY, "id": "key_2", "key": "cdvft-x", "replaces": KEY}, 201)
    key = connect(transport=script.transport).rotate_key("key_1", overlap=60)
    assert (line(script), script.sent) == ("POST /v1/admin/keys/key_1/rotate", {"overlap": 60, "expires": None})
    assert (key.id, key.secret, key.replaces.id, key.replaces.secret) == ("key_2", "cdvft-x", "key_1", None)
    script = ok({"id": "acme", "object": "tenant.deleted", "deleted": True, "adapters_deleted": 2})
    assert connect(transport=script.transport).delete_tenant("acme", with_adapters=True) == 2
    assert line(script) == "DELETE /v1/admin/tenants/acme?with_adapters=true"


def test_lists_and_mistakes(connect: Connect) -> None:
    script = ok({"object": "list", "data": [KEY], "has_more": False, "last_id": "key_1"})
    assert [key.id for key in connect(transport=script.transport).keys(tenant="acme", limit=5)] == ["key_1"]
    assert line(script) == "GET /v1/admin/keys?limit=5&tenant=acme"
    script = ok({"object": "list", "data": [{**TENANT, **LIMITS}], "has_more": False, "last_id": "acme"})
    assert [tenant.id for tenant in connect(transport=script.transport).tenants()] == ["acme"]
    with pytest.raises(
        TypeError, match=r"create_tenant\(\) got an unexpected keyword argument 'max_adapter'; did you mean"
    ):
        connect().create_tenant("acme", max_adapter=3)
    for call in ("tenant", "delete_tenant", "key", "revoke_key"):
        with pytest.raises(ValueError, match=r"'\.\.' is not a"):
            getattr(connect(), call)("..")
