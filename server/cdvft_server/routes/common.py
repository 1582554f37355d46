"""What routes share: the service, the caller, the mode that a request asks for, and the documented errors."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, cast

from fastapi import Depends, Header, Request
from pydantic import BaseModel, ConfigDict, Field

from cdvft_server.answers import ErrorBody
from cdvft_server.errors import CODES, ApiError, invalid
from cdvft_server.service import MODES, SCOPES, Caller, Mode, Service

__all__ = [
    "ANSWERED_BY",
    "Administering",
    "Anybody",
    "Inferring",
    "ListQuery",
    "Reading",
    "ServiceOf",
    "Uploading",
    "WantedMode",
    "errors",
    "query_is_known",
]

ANSWERED_BY: dict[str, Any] = {
    name: {"schema": {"type": "string"}, "description": text}
    for name, text in {
        "x-adapter": "The adapter's name, or the base's; like the other three left out where model is a list",
        "x-adapter-version": "Not for the base",
        "x-adapter-digest": "The adapter's digest, or the base's",
        "x-adapter-mode": "base, fft (unmerged) or merged",
        "x-adapter-stale": "1 while the database is away: what the name meant when it was last asked; else left out",
    }.items()
}
"""The OpenAPI entry of the headers that say which weights answered."""


# dependencies are coroutines throughout: one that is not costs a call to another thread


async def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


def _caller(*scopes: str) -> Callable[[Request], Coroutine[Any, Any, Caller]]:
    """Who asks, with one of these scopes. Raises ApiError forbidden."""

    async def caller(request: Request) -> Caller:
        found = cast(Caller, request.state.caller)
        if found.scopes.isdisjoint(scopes):
            who = f"the key {found.key_id} lacks" if found.key_id else "without a key nobody has"
            raise ApiError("forbidden", f"{who} the scope {' or '.join(scopes)}, which this needs")
        return found

    return caller


ServiceOf = Annotated[Service, Depends(_service)]
Inferring = Annotated[Caller, Depends(_caller("infer"))]
Uploading = Annotated[Caller, Depends(_caller("upload"))]
Reading = Annotated[Caller, Depends(_caller("infer", "upload"))]
Administering = Annotated[Caller, Depends(_caller("admin"))]
Anybody = Annotated[Caller, Depends(_caller(*SCOPES))]


async def _wanted_mode(
    request: Request,
    service: ServiceOf,
    x_adapter_mode: Annotated[str | None, Header(description="fft, merged or auto; else the server's --mode")] = None,
) -> Mode:
    """Refuse what is no mode."""
    if len(request.headers.getlist("x-adapter-mode")) > 1:
        raise invalid("x-adapter-mode is there more than once; send it once", "x-adapter-mode")
    if x_adapter_mode is None:
        return "merged where it fits" if service.config.mode == "merged" else service.config.mode
    if x_adapter_mode not in MODES:
        raise invalid(f"x-adapter-mode is {x_adapter_mode[:40]!r}; use {', '.join(MODES)}", "x-adapter-mode")
    return cast(Mode, x_adapter_mode)


WantedMode = Annotated[Mode, Depends(_wanted_mode)]


async def query_is_known(request: Request) -> None:
    """For routes that take no query: who sends one means something that would not happen. Raises ApiError."""
    if request.query_params and not request.scope["route"].dependant.query_params:
        field = next(iter(request.query_params))
        raise invalid(f"unknown field {field[:80]!r} in the query; {request.method} takes none here", field[:80])


class ListQuery(BaseModel):
    """Of every list that is read in pages."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, description="An entry's id, from last_id")


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of these statuses and of those that every route has, each with its codes."""
    return {
        status: {
            "model": ErrorBody,
            "description": "Error codes: " + ", ".join(code for code, own in CODES.items() if own == status),
        }
        for status in sorted({401, 403, 429, 500, *statuses})
    }
