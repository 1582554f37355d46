"""What routes share: the service, the caller, the mode that a request asks for, and the documented errors."""

from typing import Annotated, Any, cast

from fastapi import Depends, Header, Request

from cdvft_server.answers import ErrorBody
from cdvft_server.errors import CODES, invalid
from cdvft_server.service import MODES, TENANT, Mode, Service

__all__ = ["ANSWERED_BY", "CallerTenant", "ServiceOf", "WantedMode", "errors"]

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


def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


def _tenant(request: Request) -> str:
    request.state.tenant = TENANT  # for the log
    return TENANT


ServiceOf = Annotated[Service, Depends(_service)]
CallerTenant = Annotated[str, Depends(_tenant)]


def _wanted_mode(
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


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of these statuses and of those that every route has, each with its codes."""
    return {
        status: {
            "model": ErrorBody,
            "description": "Error codes: " + ", ".join(code for code, own in CODES.items() if own == status),
        }
        for status in sorted({403, 500, *statuses})
    }
