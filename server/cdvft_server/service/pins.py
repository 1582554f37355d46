"""Adapters that never leave the device: a pin belongs to a name, holds what `latest` names, and moves along with it.

The pinned adapters together must leave room for one more, as large as the largest of them and with a bank of its own:
whatever is pinned, every other adapter of that size can still be served.
"""

import asyncio
import logging
from collections.abc import Iterable

from cdvft_server.errors import ApiError, unavailable
from cdvft_server.exceptions import NotFound
from cdvft_server.service.parts import Parts
from cdvft_server.service.residency import Residency
from cdvft_server.service.stored import check_whole
from cdvft_server.store import GoneVersion, VersionRow

__all__ = ["Pins"]

log = logging.getLogger(__name__)


class Pins:
    """For the loop's thread only; changes are made one at a time."""

    def __init__(self, parts: Parts, residency: Residency) -> None:
        self._base, self._pool, self._store, self._workers = parts.base, parts.pool, parts.store, parts.workers
        self._residency = residency
        self._held: dict[int, VersionRow] = {}  # what is pinned, by adapter_id
        self._turn = asyncio.Lock()

    async def load(self) -> None:
        """What the store says is pinned, most recently used first. What cannot be is logged."""
        async with self._turn:
            for row in await self._workers.run(self._store.pinned, self._base.digest):
                await self._try(row)

    async def set(self, tenant: str, name: str, pinned: bool, *, shares: bool = False) -> VersionRow:
        """What `latest` names, pinned or not, here and in the store, or neither. `shares`: a pin that is new must leave
        others as much memory as its tenant's pins take.

        Raises NotFound, ApiError conflict where it does not fit beside the other pins, and what `Residency.lease` does.
        """
        async with self._turn:
            row = await self._workers.run(self._store.get, tenant, name, self._base.digest)
            held = self._held.get(row.adapter_id)
            if pinned:
                check_whole(row)
                await self._pin(row, shares and held is None)
            try:
                row = await self._workers.run(self._store.set_pinned, tenant, name, pinned, self._base.digest)
            except BaseException:
                if held is None:
                    self._release(row.adapter_id)
                raise
            if not pinned:
                self._release(row.adapter_id)
            elif row.digest != self._held[row.adapter_id].digest:  # `latest` moved meanwhile
                await self._try(row)
            return row

    async def follow(self, tenant: str, name: str) -> None:
        """After `latest` may have moved, or the pin, here or on another replica. A version that cannot be pinned is
        logged and served as any other."""
        async with self._turn:
            try:
                row = await self._workers.run(self._store.get, tenant, name, self._base.digest)
            except NotFound:
                for held in [own for own in self._held.values() if (own.tenant, own.name) == (tenant, name)]:
                    self._release(held.adapter_id)  # deleted while it was pinned
                return
            if row.pinned:
                await self._try(row)
            else:
                self._release(row.adapter_id)

    def forget(self, gone: Iterable[GoneVersion]) -> None:
        """These versions were deleted."""
        for version in gone:
            held = self._held.get(version.adapter_id)
            if held is not None and held.digest == version.digest:
                self._release(version.adapter_id)

    def holds(self, key: str) -> bool:
        """`VersionRow.key`."""
        return any(row.key == key for row in self._held.values())

    async def _try(self, row: VersionRow) -> None:
        try:
            check_whole(row)
            await self._pin(row)
        except Exception as error:  # one adapter's damage, or the memory's size: no reason not to serve
            self._release(row.adapter_id)
            log.warning("adapter %s@%s is pinned, and cannot be: %s", row.name, row.version, error)

    async def _pin(self, row: VersionRow, shares: bool = False) -> None:
        """The version that the name had pinned before is free to go once the new one is there."""
        await self._check_room(row, shares)
        lease = await self._residency.lease(row)
        try:
            if not self._pool.pin(row.key):
                raise unavailable("adapter_unavailable", f"adapter {row.name}@{row.version} was deleted meanwhile")
        finally:
            lease.release()
        before = self._held.get(row.adapter_id)
        self._held[row.adapter_id] = row
        if before is not None and not self.holds(before.key):
            self._pool.unpin(before.key)

    async def _check_room(self, row: VersionRow, shares: bool) -> None:
        """Raises ApiError."""
        rows = [*(own for key, own in self._held.items() if key != row.adapter_id), row]
        together, largest = await self._residency.bytes_of(rows)
        budget = self._pool.stats().budget_bytes
        own = [each for each in rows if each.tenant == row.tenant]
        if together + largest > budget:
            if len(own) < len(rows):  # how many others have pinned is not this tenant's to know
                told = "what is pinned already leaves no room for it"
            else:
                told = (
                    f"with it the {len(rows)} pinned adapters take {together} bytes and must leave {largest} for one "
                    f"that is not, the adapter memory has {budget}"
                )
            message = (
                f"adapter {row.name}@{row.version} cannot be pinned: {told} (--adapter-memory); unpin others first"
            )
            raise ApiError("conflict", message)
        if shares and (await self._residency.bytes_of(own))[0] > budget - together:
            raise ApiError(
                "conflict",
                f"adapter {row.name}@{row.version} cannot be pinned: its tenant's pins would take more of the adapter "
                "memory than they leave to others; unpin others first, or use a key that has the scope admin too",
            )

    def _release(self, adapter_id: int) -> None:
        row = self._held.pop(adapter_id, None)
        if row is not None and not self.holds(row.key):
            self._pool.unpin(row.key)
