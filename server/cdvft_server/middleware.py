"""What happens to every request before its route: an id, the keyless checks, an answer even to the unexpected.

Pure ASGI: knows no route and no body format.
"""

import asyncio
import ipaddress
import logging
import re
import secrets
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdvft_server.accesslog import method_of, route_of
from cdvft_server.errors import ApiError, error_body, invalid

__all__ = ["Envelope", "LocalOnly", "is_loopback"]

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_DISCARD_BYTES = 64 << 20
_DISCARD_SECONDS = 2.0


class Envelope:
    """Gives each request its id (`scope["state"]["request_id"]`), and each response the header that says it.

    An exception that nothing else took becomes a 500 without details; the log has them under the request id. Before an
    error that leaves the body unread, some of the body is discarded, so that a client that only writes gets to read.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if _REQUEST_ID.fullmatch(request_id) is None:
            request_id = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = _Exchange(receive, send, request_id, waits="100-continue" in headers.get("expect", "").lower())
        if "content-length" in headers and "transfer-encoding" in headers:
            error = invalid("content-length and transfer-encoding are both there; send one of them", "content-length")
            answer = JSONResponse(error.body, error.status_code, {"connection": "close"})
            return await answer(scope, exchange.receive, exchange.send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            log.exception("request %s failed: %s %s", request_id, method_of(scope), route_of(scope))
            if exchange.started:
                raise
            body = error_body("internal_error", f"an error of the server; its log has the request id {request_id}")
            await JSONResponse(body, 500)(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request's channels: knows whether the body was read and whether the response began."""

    def __init__(self, receive: Receive, send: Send, request_id: str, waits: bool) -> None:
        self._receive, self._send, self._request_id, self._waits = receive, send, request_id, waits
        self.started = self._read = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._read = self._read or message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            MutableHeaders(scope=message)["x-request-id"] = self._request_id
            if message["status"] >= 400 and not self._read and not self._waits:
                await self._discard()
            if message["status"] >= 400 and not self._read:  # what may still come is no request
                MutableHeaders(scope=message)["connection"] = "close"
        await self._send(message)

    async def _discard(self) -> None:
        size = 0
        try:
            async with asyncio.timeout(_DISCARD_SECONDS):
                while not self._read and size < _DISCARD_BYTES:
                    size += len((await self.receive()).get("body", b""))
        except TimeoutError:
            return


class LocalOnly:
    """Keyless protection against web pages: Host must name this machine, Origin must be this server itself.

    Loopback names are always right; where the server listens on another address, so is any literal address (a page
    that rebinds its name cannot send one), and whatever `names` has.
    """

    def __init__(self, app: ASGIApp, *, listens_on: str, names: Collection[str] = ()) -> None:
        self._app = app
        self._names = {name.lower() for name in (*names, listens_on)}
        self._any_address = not is_loopback(listens_on)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._refusal(Headers(scope=scope))) is not None:
            return await JSONResponse(error.body, error.status_code)(scope, receive, send)
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        hosts, origin = headers.getlist("host"), headers.get("origin")
        if len(hosts) != 1 or not self._is_ours(_hostname(hosts[0])):
            sent = ", ".join(hosts)[:100] or "none"
            return ApiError(
                "forbidden",
                f"Host is {sent}: without keys only local names are served; "
                "use 127.0.0.1 or localhost, or start the server with --allowed-hosts",
                "host",
            )
        if origin is not None and _netloc(origin) != hosts[0].lower():
            return ApiError(
                "forbidden", f"Origin {origin[:100]} is foreign: without keys no web page may call", "origin"
            )
        return None

    def _is_ours(self, host: str) -> bool:
        return is_loopback(host) or host in self._names or (self._any_address and _address(host) is not None)


def is_loopback(host: str) -> bool:
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _address(host: str) -> Any:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _hostname(host: str) -> str:
    """`Host` without its port, in lower case; "" where it is malformed."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?", host)
    return match[1].lower() if match else ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
