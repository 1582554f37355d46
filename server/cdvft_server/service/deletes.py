"""What a server does about versions that were deleted, by itself or by another replica."""

from collections.abc import Collection

from cdvft_server.service.merging import Merging
from cdvft_server.service.parts import Parts
from cdvft_server.service.pins import Pins
from cdvft_server.service.residency import Residency
from cdvft_server.store import GoneVersion

__all__ = ["Deletes"]


class Deletes:
    """For the loop's thread only."""

    def __init__(self, parts: Parts, residency: Residency, pins: Pins, merging: Merging) -> None:
        self._flights, self._last_known, self._seconds = (
            parts.flights,
            parts.last_known,
            parts.config.delete_wait_seconds,
        )
        self._residency, self._pins, self._merging = residency, pins, merging

    async def clear(self, tenant: str, name: str, gone: Collection[GoneVersion]) -> None:
        """Wait for the calls in flight, not for ever, then give the versions' memory back."""
        ids = {version.id for version in gone}
        self._last_known.forget(lambda _, row: row.id in ids)
        await self._flights.landed(tenant, name, ids, self._seconds)
        self._pins.forget(gone)
        for digest in {version.digest for version in gone}:
            if not self._pins.holds(digest):  # of another name
                self._merging.discard(digest)
                self._residency.discard(digest)  # where another name has the same content, it is loaded again
