"""The admin calls as data: tenants and keys of the whole server, for a key with the scope `admin`."""

from collections.abc import Mapping, Sequence
from typing import Any

from . import _parse as parse
from ._calls import Call, path_name
from ._fields import TenantFields, check_known
from ._types import Key, Page, Tenant

TENANTS, KEYS = "/v1/admin/tenants", "/v1/admin/keys"


def tenants(limit: int) -> Call[Page[Tenant]]:
    return Call("GET", TENANTS, parse.tenants, params={"limit": limit})


def tenant(name: str) -> Call[Tenant]:
    return Call("GET", _tenant(name), parse.tenant)


def create_tenant(name: str, fields: TenantFields) -> Call[Tenant]:
    check_known("create_tenant", fields, TenantFields)
    return Call("POST", TENANTS, parse.tenant, json={"name": name, **fields}, repeatable=False)


def set_tenant(name: str, fields: TenantFields) -> Call[Tenant]:
    check_known("set_tenant", fields, TenantFields)
    given: Mapping[str, Any] = {**fields}
    return Call("PUT", _tenant(name), parse.tenant, json=given)


def delete_tenant(name: str, with_adapters: bool) -> Call[int]:
    params = {"with_adapters": "true"} if with_adapters else None
    return Call(
        "DELETE",
        _tenant(name),
        lambda response: int(parse.body(response)["adapters_deleted"]),
        params=params,
        repeatable=False,
    )


def keys(limit: int, tenant: str | None) -> Call[Page[Key]]:
    params: dict[str, str | int] = {"limit": limit}
    return Call("GET", KEYS, parse.keys, params=params if tenant is None else {**params, "tenant": tenant})


def key(id: str) -> Call[Key]:
    return Call("GET", _key(id), parse.key)


def create_key(tenant: str, scopes: Sequence[str], expires: str | int | None) -> Call[Key]:
    sent = {"tenant": tenant, "scopes": list(scopes), "expires": expires}
    return Call("POST", KEYS, parse.key, json=sent, repeatable=False)


def rotate_key(id: str, overlap: int | None, expires: str | int | None) -> Call[Key]:
    sent = {} if overlap is None else {"overlap": overlap}
    return Call("POST", f"{_key(id)}/rotate", parse.key, json={**sent, "expires": expires}, repeatable=False)


def revoke_key(id: str) -> Call[Key]:
    return Call("DELETE", _key(id), parse.key)


def _tenant(name: str) -> str:
    return f"{TENANTS}/{path_name(name, 'a tenant name')}"


def _key(id: str) -> str:
    return f"{KEYS}/{path_name(id, 'a key id')}"
