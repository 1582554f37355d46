"""`/v1/usage`: what the caller used, as a list or as CSV."""

import csv
import io
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from cdvft_server.answers import UsageEntry, UsageList
from cdvft_server.errors import ApiError
from cdvft_server.routes.common import Anybody, ServiceOf, errors
from cdvft_server.service import GROUPS, Caller, UsageQuery

__all__ = ["router"]

router = APIRouter(tags=["usage"])

ANSWERS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}
COLUMNS = [name for name in UsageEntry.model_fields if name not in ("id", "object")]
LATEST = 253_402_300_799  # the end of the year 9999
EVERYBODY = "*"


def _moment(value: Any) -> Any:
    """Unix seconds, from those or from ISO 8601; without an offset it is UTC."""
    try:
        if isinstance(value, str) and value.isascii() and value.isdecimal():
            seconds = int(value[:20])
        else:
            moment = datetime.fromisoformat(value)
            seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (TypeError, ValueError, OverflowError):
        raise ValueError("use unix seconds, or ISO 8601 such as 2026-11-29T14:00:00Z (a + is written %2B)") from None
    if not 0 <= seconds <= LATEST:
        raise ValueError("use a time from 1970 to 9999")
    return seconds


def _groups(value: str) -> str:
    names = value.split(",")
    if len(set(names)) < len(names) or not set(names) <= set(GROUPS) or {"hour", "day"} <= set(names):
        raise ValueError(f"use some of {', '.join(GROUPS)}, with commas; hour or day, not both")
    return value


def _askable(value: str) -> str:
    """PostgreSQL cannot even be asked for what has a NUL."""
    if "\0" in value:
        raise ValueError("has a NUL character; leave it out")
    return value


WRITTEN = {"anyOf": [{"type": "integer"}, {"type": "string", "format": "date-time"}]}
Text = Annotated[str, AfterValidator(_askable)]
Moment = Annotated[int, BeforeValidator(_moment), WithJsonSchema(WRITTEN)]


class _UsageFields(BaseModel):
    model_config = ConfigDict(extra="forbid")

    start: Moment | None = Field(None, description="Unix seconds or ISO 8601; its whole hour is included")
    end: Moment | None = Field(
        None, description="The same; what is used from then on is not included, but for the rest of its hour"
    )
    group_by: Annotated[str, AfterValidator(_groups)] = Field(
        "adapter", description=f"Some of {', '.join(GROUPS)}, with commas; adapter if left out"
    )
    adapter: Text | None = Field(None, description="Only this adapter: NAME, or OWNER/NAME, or the base's served name")
    tenant: Text | None = Field(None, description="With the scope admin: another tenant, or * for all")
    limit: int | None = Field(None, ge=1, le=100, description="20 if left out; as CSV all")
    after: Text | None = Field(None, description="An entry's id, from last_id")
    format: Literal["json", "csv"] | None = Field(None, description="Else what Accept asks for")


@router.get("/v1/usage", response_model=UsageList, responses={**errors(400, 503), **ANSWERS})
async def usage(
    request: Request, query: Annotated[_UsageFields, Query()], service: ServiceOf, caller: Anybody
) -> Response:
    """Requests, tokens and engine seconds, in groups: newest first, then by tenant, adapter and version."""
    whose = _whose(caller, query.tenant)
    asked = UsageQuery(whose, query.group_by.split(","), query.start, query.end, query.adapter)
    if (query.format or _accepted(request)) == "csv":
        pages = service.usage.pages(asked, query.limit, query.after)
        first = await anext(pages)  # what is wrong is told before the answer begins
        headers = {"content-disposition": 'attachment; filename="usage.csv"'}
        return StreamingResponse(_csv(first, pages), media_type="text/csv", headers=headers)
    entries, more = await service.usage.page(asked, query.limit or 20, query.after)
    answer = UsageList(data=entries, has_more=more, last_id=entries[-1].id if entries else None)
    return JSONResponse(answer.model_dump())


def _whose(caller: Caller, asked: str | None) -> str | None:
    """The tenant that is meant, None for all. Raises ApiError where that is not the caller's to see."""
    if asked not in (None, caller.tenant) and "admin" not in caller.scopes:
        raise ApiError("forbidden", "another tenant's usage needs a key with the scope admin", "tenant")
    return None if asked == EVERYBODY else asked or caller.tenant


def _accepted(request: Request) -> str:
    accept = request.headers.get("accept", "").lower()
    return "csv" if "text/csv" in accept and "application/json" not in accept else "json"


async def _csv(first: Sequence[UsageEntry], rest: AsyncIterator[list[UsageEntry]]) -> AsyncIterator[bytes]:
    """RFC 4180. No cell can be taken for a formula: names begin with a letter or digit, the others are numbers."""
    yield _lines([COLUMNS])
    yield _lines(map(_cells, first))
    async for entries in rest:
        yield _lines(map(_cells, entries))


def _cells(entry: UsageEntry) -> list[Any]:
    times = {"start": entry.start, "end": entry.end}
    return [_iso(times[name]) if name in times else getattr(entry, name) for name in COLUMNS]


def _iso(seconds: int | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _lines(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
