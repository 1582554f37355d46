"""One log line for each request: who asked which route, what answered, how long it took. No query, body or key."""

import logging
import time
from http import HTTPMethod
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdvft_server.logs import CURRENT

__all__ = ["AccessLog", "method_of", "refused", "route_of"]

log = logging.getLogger(__name__)

METHODS = frozenset(HTTPMethod)
PROBES = ("/health", "/ready", "/metrics")  # asked every few seconds: told at the level debug, unless they fail


class AccessLog:
    """A route may leave in the request's state: `usage` as the answer has it, and `adapters` where they are several."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status, headers = time.perf_counter(), 0, Headers()
        state = scope.setdefault("state", {})
        token = CURRENT.set(state)

        async def watch(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], Headers(raw=message["headers"])
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            level = _level(route_of(scope), status)
            if log.isEnabledFor(level):
                milliseconds = round(1000 * (time.perf_counter() - start), 2)
                fields = {"status": status, "milliseconds": milliseconds, **_answered(state, headers)}
                _tell(level, method_of(scope), route_of(scope), {**fields, "client": (scope["client"] or [None])[0]})
            CURRENT.reset(token)


def refused(status: int, request_id: str, client: str | None) -> None:
    """What was no request that an app could have."""
    _tell(logging.INFO, "other", "(none)", {"status": status, "request_id": request_id, "client": client})


def method_of(scope: Scope) -> str:
    """One of HTTP's methods, or "other"."""
    return scope["method"] if scope["method"] in METHODS else "other"


def route_of(scope: Scope) -> str:
    """The route's path with its parameters' names, or "(none)": never what was asked for."""
    return getattr(scope.get("route"), "path", "(none)")


def _tell(level: int, method: str, route: str, fields: dict[str, Any]) -> None:
    more = {"method": method, "route": route, **fields}
    log.log(level, "%s %s %s", method, route, fields["status"], extra={"fields": more})


def _level(route: str, status: int) -> int:
    if status >= 500:
        return logging.WARNING
    return logging.DEBUG if route in PROBES and status < 400 else logging.INFO


def _answered(state: dict[str, Any], headers: Headers) -> dict[str, Any]:
    usage = state.get("usage") or {}
    return {
        "adapter": headers.get("x-adapter"),
        "digest": headers.get("x-adapter-digest"),
        "mode": headers.get("x-adapter-mode"),
        "adapters": state.get("adapters"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
    }
