"""`/v1/adapters`: upload, list, describe, pin, download, aliases, delete. The caller's own names only."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from cdvft_server.answers import AdapterBody, AdapterDetails, AdapterList, Deleted
from cdvft_server.bodies import JsonRoute
from cdvft_server.forms import UPLOAD_SCHEMA, upload_form
from cdvft_server.routes.common import ListQuery, Reading, ServiceOf, Uploading, errors, query_is_known
from cdvft_server.schemas import AdapterChange, AliasBody
from cdvft_server.service import Page

__all__ = ["router"]

router = APIRouter(
    route_class=JsonRoute, prefix="/v1/adapters", tags=["adapters"], dependencies=[Depends(query_is_known)]
)

SAME = {"model": AdapterBody, "description": "The name has this content already"}
ZIP: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}
}


class _VersionQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: str | None = Field(None, description="A version's number")


@router.post(
    "",
    status_code=201,
    response_model=AdapterBody,
    responses={**errors(400, 408, 409, 413, 415, 422, 503), 200: SAME},
    openapi_extra=UPLOAD_SCHEMA,
)
async def upload(request: Request, service: ServiceOf, caller: Uploading) -> Response:
    """Validate, self-test and store an adapter; from the answer on it can be used."""
    with service.uploads.turn(caller):
        async with upload_form(request, service.config) as form:
            stored = await service.uploads.put(caller.tenant, form)
    body = service.catalog.body(stored.row, stored.ignored)
    return JSONResponse(body.model_dump(), 201 if stored.created else 200)


@router.get("", responses=errors(400, 404, 503))
async def list_adapters(query: Annotated[ListQuery, Query()], service: ServiceOf, caller: Reading) -> AdapterList:
    """Newest first, each name as its latest version."""
    page = await service.catalog.list_adapters(caller.tenant, query.limit, query.after)
    return _list(page, page.rows[-1].id if page.rows else None)


@router.get("/{name}", responses=errors(400, 404, 503))
async def describe(name: str, service: ServiceOf, caller: Reading) -> AdapterDetails:
    """The version that `latest` names."""
    return await service.catalog.describe(caller.tenant, name)


@router.put("/{name}", responses=errors(400, 404, 408, 409, 413, 415, 503))
async def change(name: str, body: AdapterChange, service: ServiceOf, caller: Uploading) -> AdapterDetails:
    """Pin what `latest` names to the device, now and after a restart, or unpin it."""
    return await service.catalog.set_pinned(caller, name, body.pinned)


@router.get("/{name}/versions", responses=errors(400, 404, 503))
async def list_versions(
    name: str, query: Annotated[ListQuery, Query()], service: ServiceOf, caller: Reading
) -> AdapterList:
    """Newest first; `last_id` and `after` are version numbers."""
    page = await service.catalog.list_versions(caller.tenant, name, query.limit, query.after)
    return _list(page, str(page.rows[-1].version) if page.rows else None)


@router.get("/{name}/download", response_class=Response, responses=ZIP | errors(400, 404, 503))
async def download(
    name: str, query: Annotated[_VersionQuery, Query()], service: ServiceOf, caller: Uploading
) -> Response:
    """The files as they were uploaded first, of `version`, else of the latest."""
    content = await service.catalog.download(caller.tenant, name, query.version)
    headers = {"content-disposition": f'attachment; filename="{name}.zip"'}
    return Response(content, media_type="application/zip", headers=headers)


@router.put("/{name}/aliases/{alias}", responses=errors(400, 404, 408, 413, 415, 503))
async def set_alias(name: str, alias: str, body: AliasBody, service: ServiceOf, caller: Uploading) -> AdapterDetails:
    """Make or move a pointer: promote a version, or roll back."""
    return await service.catalog.set_alias(caller.tenant, name, alias, body.version)


@router.delete("/{name}/aliases/{alias}", responses=errors(400, 404, 409, 503))
async def delete_alias(name: str, alias: str, service: ServiceOf, caller: Uploading) -> AdapterDetails:
    """Remove a pointer; `latest` can only be moved."""
    return await service.catalog.delete_alias(caller.tenant, name, alias)


@router.delete("/{name}", responses=errors(400, 404, 409, 503))
async def delete(name: str, query: Annotated[_VersionQuery, Query()], service: ServiceOf, caller: Uploading) -> Deleted:
    """Delete one version, or the whole name; answers when the requests that use it have ended."""
    freed = await service.catalog.delete(caller.tenant, name, query.version)
    return Deleted(id=name, bytes_freed=freed)


def _list(page: Page, last_id: str | None) -> AdapterList:
    return AdapterList(data=page.rows, has_more=page.has_more, last_id=last_id)
