"""Which adapters are in use by calls that have not ended: what a delete waits for."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

from cdvft_server.service.signals import Signal

__all__ = ["Flight", "Flights", "landing_on_error"]


class Flight:
    """One call's use of one name: begins before the name is looked up, so that no delete slips in between."""

    def __init__(self, flights: "Flights", owner: str, name: str) -> None:
        self._flights = flights
        self.key = (owner, name)
        self.version_id: int | None = None  # unknown until looked up

    def found(self, version_id: int) -> None:
        self.version_id = version_id
        self._flights.changed.notify()

    def land(self) -> None:
        """The call has ended; calling it again does nothing."""
        self._flights.remove(self)


class Flights:
    """For the loop's thread only."""

    def __init__(self) -> None:
        self._open: set[Flight] = set()
        self.changed = Signal()

    @property
    def count(self) -> int:
        return len(self._open)

    def open(self, owner: str, name: str) -> Flight:
        flight = Flight(self, owner, name)
        self._open.add(flight)
        return flight

    def remove(self, flight: Flight) -> None:
        self._open.discard(flight)
        self.changed.notify()

    async def landed(self, owner: str, name: str, version_ids: Collection[int], seconds: float) -> bool:
        """Wait for the calls that use these versions, or may turn out to. False if some go on after this time."""
        mine = {flight for flight in self._open if flight.key == (owner, name)}

        def clear() -> bool:
            return not any(f.version_id is None or f.version_id in version_ids for f in mine & self._open)

        return await self.changed.wait_for(clear, seconds)


@contextmanager
def landing_on_error(flights: Iterable[Flight]) -> Iterator[None]:
    """What begins a call lands its flights itself where it fails; after that, the call's end does."""
    try:
        yield
    except BaseException:
        for flight in flights:
            flight.land()
        raise
