"""Who may come in: every request's key, or without keys its Host and Origin; and its tenant's rate.

Pure ASGI, inside `Envelope`. What it finds out is `request.state.caller`; scopes are the routes' to ask for.
"""

from collections.abc import Callable, Collection
from contextlib import ExitStack
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdvft_server.addresses import address, hostname, is_loopback
from cdvft_server.errors import ApiError
from cdvft_server.service import FAULTS, Caller, Service, translate

__all__ = ["OPEN", "Gate", "LocalOnly"]

OPEN = frozenset({"/", "/health", "/ready", "/metrics", "/openapi.json"})
"""Paths that need no key."""
REFUSALS: tuple[type[Exception], ...] = (ApiError, *FAULTS)
UNLIMITED = "/v1/admin/"  # who has used up a rate must be able to raise it


class Gate:
    """Lets a request in as somebody, or answers why not."""

    def __init__(self, app: ASGIApp, *, local: "LocalOnly", service: Callable[[], Service]) -> None:
        self._app, self._local, self._service = app, local, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers, service = Headers(scope=scope), self._service()
        try:
            caller = None
            if scope["path"] not in OPEN:
                caller = await service.access.resolve(headers.getlist("authorization"))
            if not service.access.required and (caller is None or caller.key_id is None):
                self._local.check(headers)
        except REFUSALS as error:
            return await _refuse(error, scope, receive, send)
        if caller is None:
            return await self._app(scope, receive, send)
        scope["state"].update(caller=caller, tenant=caller.tenant)  # for the routes, and for the log
        await service.turns.mine(caller.tenant)
        await self._limited(caller, service, scope, receive, send)

    async def _limited(self, caller: Caller, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        turn = ExitStack()

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(service.limiter.headers(caller))
            elif not message.get("more_body", False):
                turn.close()  # before the client can know that this was the end
            await send(message)

        with turn:
            try:
                if not scope["path"].startswith(UNLIMITED):
                    turn.enter_context(service.limiter.enter(caller))
            except ApiError as error:
                return await _refuse(error, scope, receive, tell)
            await self._app(scope, receive, tell)


async def _refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    found = translate(error)
    await JSONResponse(found.body, found.status_code, found.headers)(scope, receive, send)


class LocalOnly:
    """Keyless protection against web pages: Host must name this machine, Origin must be this server itself.

    Loopback names are always right; where the server listens on another address, so is any literal address (a page
    that rebinds its name cannot send one), and whatever `names` has.
    """

    def __init__(self, listens_on: str, names: Collection[str] = ()) -> None:
        self._names = {name.lower() for name in (*names, listens_on)}
        self._any_address = not is_loopback(listens_on)

    def check(self, headers: Headers) -> None:
        """Raises ApiError forbidden."""
        hosts, origin = headers.getlist("host"), headers.get("origin")
        if len(hosts) != 1 or not self._is_ours(hostname(hosts[0])):
            sent = ", ".join(hosts)[:100] or "none"
            raise ApiError(
                "forbidden",
                f"Host is {sent}: without keys only local names are served; "
                "use 127.0.0.1 or localhost, or start the server with --allowed-hosts",
                "host",
            )
        if origin is not None and _netloc(origin) != hosts[0].lower():
            raise ApiError(
                "forbidden", f"Origin {origin[:100]} is foreign: without keys no web page may call", "origin"
            )

    def _is_ours(self, host: str) -> bool:
        return is_loopback(host) or host in self._names or (self._any_address and address(host) is not None)


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
