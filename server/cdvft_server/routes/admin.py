"""`/v1/admin`: tenants and keys of the whole server, for keys with the scope `admin`, whatever their tenant."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from cdvft_server.administration import KeyRequest, RotateRequest, TenantChange, TenantRequest
from cdvft_server.answers import KeyBody, KeyList, KeyRotated, KeySecret, TenantBody, TenantDeleted, TenantList
from cdvft_server.bodies import JsonRoute
from cdvft_server.routes.common import Administering, ListQuery, ServiceOf, errors, query_is_known

__all__ = ["router"]

router = APIRouter(route_class=JsonRoute, prefix="/v1/admin", tags=["admin"], dependencies=[Depends(query_is_known)])
BODY = (400, 408, 413, 415, 503)


class _KeyQuery(ListQuery):
    tenant: str | None = Field(None, description="Only this tenant's")


class _DeleteQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    with_adapters: bool = Field(False, description="Delete its adapters with it")


@router.post("/tenants", status_code=201, responses=errors(*BODY, 409))
async def create_tenant(body: TenantRequest, service: ServiceOf, caller: Administering) -> TenantBody:
    """A new tenant; without limits it has none but the server's."""
    return await service.admin.create_tenant(body.name, body.limits, body.weight)


@router.get("/tenants", responses=errors(400, 404, 503))
async def list_tenants(query: Annotated[ListQuery, Query()], service: ServiceOf, caller: Administering) -> TenantList:
    """Newest first; `default` is always there."""
    return await service.admin.list_tenants(query.limit, query.after)


@router.get("/tenants/{name}", responses=errors(400, 404, 503))
async def describe_tenant(name: str, service: ServiceOf, caller: Administering) -> TenantBody:
    """Its limits, and what it has."""
    return await service.admin.describe_tenant(name)


@router.put("/tenants/{name}", responses=errors(*BODY, 404))
async def change_tenant(name: str, body: TenantChange, service: ServiceOf, caller: Administering) -> TenantBody:
    """Change the limits that are named, from the next request on; null lifts one."""
    return await service.admin.set_tenant(name, body.changes)


@router.delete("/tenants/{name}", responses=errors(400, 404, 409, 503))
async def delete_tenant(
    name: str, query: Annotated[_DeleteQuery, Query()], service: ServiceOf, caller: Administering
) -> TenantDeleted:
    """With its keys, and refused where it has adapters, unless `with_adapters`."""
    return await service.admin.delete_tenant(name, query.with_adapters)


@router.post("/keys", status_code=201, responses=errors(*BODY, 404))
async def create_key(body: KeyRequest, service: ServiceOf, caller: Administering) -> KeySecret:
    """A new key; `key` is the secret, told this once."""
    return await service.admin.create_key(body.tenant, body.scopes, body.expires)


@router.get("/keys", responses=errors(400, 404, 503))
async def list_keys(query: Annotated[_KeyQuery, Query()], service: ServiceOf, caller: Administering) -> KeyList:
    """Newest first, with what each key begins with."""
    return await service.admin.list_keys(query.limit, query.after, query.tenant)


@router.get("/keys/{id}", responses=errors(400, 404, 503))
async def describe_key(id: str, service: ServiceOf, caller: Administering) -> KeyBody:
    """Whose it is, what it may, until when."""
    return await service.admin.describe_key(id)


@router.delete("/keys/{id}", responses=errors(400, 404, 503))
async def revoke_key(id: str, service: ServiceOf, caller: Administering) -> KeyBody:
    """Let nobody in by it, from the answer on; it stays in lists."""
    return await service.admin.revoke_key(id)


@router.post("/keys/{id}/rotate", status_code=201, responses=errors(*BODY, 404, 409))
async def rotate_key(id: str, body: RotateRequest, service: ServiceOf, caller: Administering) -> KeyRotated:
    """A new key of the same tenant and scopes; the old one goes on for `overlap` seconds."""
    return await service.admin.rotate_key(id, body.overlap, body.expires)
