"""One API call's requests to the engine, their events, and an end that always comes."""

from collections.abc import AsyncIterator, Iterable, Sequence

from cdvft_server.engine.batch import Event, Token
from cdvft_server.errors import unavailable
from cdvft_server.service.bridge import Inbox
from cdvft_server.service.flights import Flight
from cdvft_server.service.metering import Part, Use
from cdvft_server.service.parts import Parts

__all__ = ["Call"]

FEW = 16  # a tenant with no more than this part of `max_queue` waiting gets in where others fill it


class Call:
    """`close` cancels what has not ended and lands the flights; it must run, and may run twice.

    What the call uses is counted from `submit` on, after a `close` too: the engine may be in the middle of a step.
    `whole`: nobody reads single tokens, so they do not come as events: they are kept where they are counted.
    """

    def __init__(self, parts: Parts, tenant: str, flights: Iterable[Flight], *, whole: bool) -> None:
        self._engine, self._ledger, self._max_queue = parts.engine, parts.ledger, parts.config.max_queue
        self._inbox, self._flights = Inbox(parts.bridge, tenant), list(flights)
        self._running: set[str] = set()
        self.deliver = self._keep if whole else self._inbox.deliver  # what the engine calls
        self.use = Use([])

    def submit(self, parts: Sequence[Part]) -> None:
        """All or none; from here on the engine owns the requests' leases. Raises what the engine refuses them with.

        A call enters whole as long as fewer than `max_queue` requests wait: a call of many rows is not turned away
        because of a few that came before it. Beyond that, a tenant of whom few wait still gets in: who fills the queue
        keeps nobody else out.
        """
        waiting = self._engine.waiting
        if waiting >= self._max_queue and not self._are_few(parts):
            raise unavailable("overloaded", f"{waiting} requests wait already; try again in a second")
        use = self.use = Use(parts)  # before the engine can deliver anything
        self._engine.submit([part.request for part in parts])
        self._running = set(use.parts)
        self._ledger.open(use)

    def _are_few(self, parts: Sequence[Part]) -> bool:
        """With those of the tenant that wait already."""
        own = self._ledger.waiting(parts[0].account.tenant)
        return own + len(parts) <= max(1, self._max_queue // FEW)

    def _keep(self, event: Event) -> None:
        """In the engine's thread."""
        if isinstance(event, Token):
            self.use.parts[event.request_id].take(event)
        else:
            self._inbox.deliver(event)

    async def events(self) -> AsyncIterator[Event]:
        """Until every request has had its terminal event."""
        while self._running:
            event = await self._inbox.get()
            self._take(event)
            yield event

    def cancel(self, request_id: str) -> None:
        """Ask one request to end, whose text is complete; its terminal event still comes."""
        self.use.parts[request_id].enough = True
        self._engine.cancel(request_id)

    def close(self) -> None:
        for request_id in self._running:
            self._engine.cancel(request_id)
        self._inbox.divert(self._take)
        for flight in self._flights:
            flight.land()

    def _take(self, event: Event) -> None:
        self.use.parts[event.request_id].take(event)
        if not isinstance(event, Token):
            self._running.discard(event.request_id)
