"""How an outage of a database across the network is noticed soon and then costs little."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Connection

from cdvft_server.exceptions import StoreUnavailable

__all__ = ["AWAY", "Breaker", "Watch"]

log = logging.getLogger(__name__)

AWAY = "the database cannot be reached"
RETRY_SECONDS = 1.0
TICK_SECONDS = 0.5


class Breaker:
    """Once connecting failed, connections are refused at once; one attempt a second is let through, until one works.

    Any thread. `attempt_seconds`: how long an attempt may take. `clock` is in seconds.
    """

    def __init__(self, attempt_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._attempt_seconds, self._clock = attempt_seconds, clock
        self._lock = threading.Lock()
        self._retry_at: float | None = None  # None: connecting works

    def check(self) -> None:
        """Before an attempt. Raises StoreUnavailable."""
        with self._lock:
            if self._retry_at is None:
                return
            if self._clock() < self._retry_at:
                raise StoreUnavailable(f"the store cannot be used: {AWAY}")
            self._retry_at = self._clock() + self._attempt_seconds

    def failed(self, error: Exception) -> None:
        with self._lock:
            if self._retry_at is None:
                log.warning("%s: %s", AWAY, error)
            self._retry_at = self._clock() + RETRY_SECONDS

    def worked(self) -> None:
        with self._lock:
            if self._retry_at is not None:
                log.warning("the database is back")
            self._retry_at = None


class Watch:
    """Cuts connections whose deadline is over, from its own thread: who waits on one gets the driver's error.

    A timeout of the server's would not do where the server, or the network to it, stands still.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[object, tuple[float, Any]] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cdvft-store-watch", daemon=True)
        self._thread.start()

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[Callable[[Connection], None]]:
        """See `Backend.deadline`."""
        key, end = object(), time.monotonic() + seconds

        def watch(connection: Connection) -> None:
            with self._lock:
                self._watched[key] = end, connection.connection.dbapi_connection

        try:
            yield watch
        finally:
            with self._lock:
                self._watched.pop(key, None)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(TICK_SECONDS):
            now = time.monotonic()
            with self._lock:
                for end, connection in self._watched.values():
                    if now > end:
                        _cut(connection)


def _cut(connection: Any) -> None:
    """Both directions of its socket; closing it is its user's."""
    with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as own:  # closed or cut already
        own.shutdown(socket.SHUT_RDWR)
