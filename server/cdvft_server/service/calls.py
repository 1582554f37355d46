"""One API call's requests to the engine, their events, and an end that always comes."""

from collections.abc import AsyncIterator, Iterable, Sequence

from cdvft_server.engine.batch import Event, Request, Token
from cdvft_server.engine.engine import Engine
from cdvft_server.errors import unavailable
from cdvft_server.service.bridge import Inbox
from cdvft_server.service.flights import Flight

__all__ = ["Call"]


class Call:
    """`close` cancels what has not ended and lands the flights; it must run, and may run twice."""

    def __init__(self, engine: Engine, inbox: Inbox, flights: Iterable[Flight], max_queue: int) -> None:
        self._engine, self._inbox, self._flights, self._max_queue = engine, inbox, list(flights), max_queue
        self._running: set[str] = set()

    def submit(self, requests: Sequence[Request]) -> None:
        """All or none; from here on the engine owns the requests' leases. Raises what the engine refuses them with.

        A call enters whole as long as fewer than `max_queue` requests wait: a call of many rows is not turned away
        because of a few that came before it.
        """
        waiting = self._engine.stats().waiting
        if waiting >= self._max_queue:
            raise unavailable("overloaded", f"{waiting} requests wait already; try again in a second")
        self._engine.submit(requests)
        self._running = {request.id for request in requests}

    async def events(self) -> AsyncIterator[Event]:
        """Until every request has had its terminal event."""
        while self._running:
            event = await self._inbox.get()
            if not isinstance(event, Token):
                self._running.discard(event.request_id)
            yield event

    def cancel(self, request_id: str) -> None:
        """Ask one request to end; its terminal event still comes."""
        self._engine.cancel(request_id)

    def close(self) -> None:
        for request_id in self._running:
            self._engine.cancel(request_id)
        self._running.clear()
        for flight in self._flights:
            flight.land()
