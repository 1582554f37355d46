"""Connections below the app: how many there may be, how slow they may be, errors in the API's shape."""

import asyncio
import json
import logging
import resource
import sys
import time
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from cdvft_server.accesslog import refused
from cdvft_server.errors import ApiError, invalid, unavailable
from cdvft_server.ids import new_id

__all__ = ["AcceptLog", "Connection", "allowed_connections"]

log = logging.getLogger(__name__)

RESERVED_FILES = 64  # the store's, the template workers', the loop's own
FILES_EACH = 3  # a connection, and the two files of an upload
QUIET_SECONDS = 60.0


class Connection(H11Protocol):
    """uvicorn's connection. The app's state has `config` and `max_connections`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._state: Any = self.config.app.state  # type: ignore[union-attr]  # the app itself, see make_server
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._state.max_connections:
            self._refuse(unavailable("overloaded", "the server has as many connections as it may; try again"))
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_read_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More of the answer waits than the loop's high-water mark (64 KiB): it must go down to a quarter in time."""
        super().pause_writing()
        self._read_timer = self.loop.call_later(self._state.config.response_wait_seconds, self._reader_is_late)

    def resume_writing(self) -> None:
        self._stop_read_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn while it handles the parser's error."""
        self._refuse(invalid(f"the request is not valid HTTP: {str(sys.exc_info()[1] or msg)[:200]}"))

    def _watch_head(self) -> None:
        """A head that was begun must end in time, however its bytes are spread."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._state.config.request_wait_seconds, self._head_is_late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        wait = self._state.config.request_wait_seconds
        self._refuse(ApiError("request_timeout", f"no whole request came within {wait:g} seconds"))

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _reader_is_late(self) -> None:
        """Nothing can be said to a client that does not read; its request ends as if it had gone away."""
        log.warning("a client did not read its answer for %g seconds", self._state.config.response_wait_seconds)
        self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answer, if no answer has begun, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            body, request_id = json.dumps(error.body).encode(), f"req_{new_id()}"
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
                "x-request-id": request_id,
                **(error.headers or {}),
            }
            head = h11.Response(
                status_code=error.status_code, headers=list(headers.items()), reason=STATUS_PHRASES[error.status_code]
            )
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            refused(error.status_code, request_id, self.client[0] if self.client else None)
        self.transport.close()


def allowed_connections(asked: int) -> int:
    """`asked`, or as many as the process may have files for, which it is allowed more of first if that can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited, needed = resource.RLIM_INFINITY, RESERVED_FILES + FILES_EACH * asked
    if soft != unlimited and soft < needed:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard == unlimited else min(hard, needed), hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    allowed = asked if soft == unlimited else max(1, (soft - RESERVED_FILES) // FILES_EACH)
    if allowed < asked:
        log.warning("the process may open %d files: at most %d connections instead of %d", soft, allowed, asked)
    return min(asked, allowed)


class AcceptLog:
    """The loop's exception handler: where no file is left for a connection, it says so once a minute.

    asyncio would log a traceback for each place in the queue, every second, and of other faults the task, whose
    exception may quote a prompt.
    """

    def __init__(self) -> None:
        self._quiet_until = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not str(context.get("message")).startswith("socket.accept() out of system resource"):
            log.error("%s", context.get("message"), exc_info=context.get("exception"))
        elif time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            log.error("no connection can be accepted: %s", context.get("exception"))
