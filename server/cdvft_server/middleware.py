"""What happens to every request before anything else: an id, and an answer even to the unexpected.

Pure ASGI: knows no route and no body format.
"""

import asyncio
import logging
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdvft_server.accesslog import method_of, route_of
from cdvft_server.errors import error_body, invalid
from cdvft_server.ids import new_id

__all__ = ["Envelope"]

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
            request_id = f"req_{new_id()}"
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
