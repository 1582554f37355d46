"""Leases on adapters: from the pool where they are resident, else loaded once for all who wait for them."""

import asyncio
import logging
from contextlib import ExitStack
from typing import Literal

from cdvft.adapter import Adapter
from cdvft.checkpoint import read_adapter
from cdvft.errors import CdvftError
from cdvft.prepared import PreparedAdapter, prepare_adapter

from cdvft_server.engine.pool import Lease, PoolFull
from cdvft_server.errors import unavailable
from cdvft_server.exceptions import CorruptBlob
from cdvft_server.service.parts import Parts
from cdvft_server.store import VersionRow

__all__ = ["Residency"]

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.1  # a lease that is given back while we look for room notifies nobody


class _Load:
    """One adapter on its way into the pool. It holds a lease until everybody who waits has their own."""

    def __init__(self, task: "asyncio.Task[Lease]") -> None:
        self.task = task
        self.waiting = 0
        task.add_done_callback(lambda _: self.release_if_unused())

    def release_if_unused(self) -> None:
        if not self.waiting and self.task.done() and not self.task.cancelled() and self.task.exception() is None:
            self.task.result().release()


class Residency:
    """For the loop's thread only."""

    def __init__(self, parts: Parts) -> None:
        self._base, self._pool, self._store, self._workers = parts.base, parts.pool, parts.store, parts.workers
        self._released, self._wait_seconds = parts.bridge.ended, parts.config.pool_wait_seconds
        self._loads: dict[str, _Load] = {}

    async def lease(self, row: VersionRow) -> Lease:
        """Raises ApiError adapter_unavailable where the stored adapter cannot be read, PoolFull after the wait."""
        while True:
            lease = self._pool.acquire(row.digest)
            if lease is not None:
                return lease
            lease = await self._join_load(row)
            if lease is not None:
                return lease

    def shares(self, lease: Lease | None, count: int, leases: ExitStack) -> list[Lease | None]:
        """`count` more leases on an adapter that is leased (None is the base), given back with `leases`."""
        shares = [lease and self._pool.acquire(lease.digest) for _ in range(count)]
        for share in shares:
            if share is not None:
                leases.callback(share.release)
        if lease is not None and None in shares:
            raise unavailable("adapter_unavailable", "the adapter was deleted while the request began")
        return shares

    def of(self, digest: str) -> Literal["device", "store"]:
        """Where it is now."""
        return "device" if self._pool.is_resident(digest) else "store"

    def discard(self, digest: str) -> None:
        self._pool.discard(digest)

    async def close(self) -> None:
        """No load goes on after this."""
        tasks = [load.task for load in self._loads.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _join_load(self, row: VersionRow) -> Lease | None:
        load = self._loads.get(row.digest)
        if load is None:
            load = self._loads[row.digest] = _Load(asyncio.create_task(self._load(row), name=f"load {row.digest}"))
        load.waiting += 1
        try:
            await asyncio.shield(load.task)
            return self._pool.acquire(row.digest)
        finally:
            load.waiting -= 1
            load.release_if_unused()

    async def _load(self, row: VersionRow) -> Lease:
        try:
            prepared = await self._workers.run(self._read, row)
            return await self._place(prepared)
        finally:
            del self._loads[row.digest]

    def _read(self, row: VersionRow) -> PreparedAdapter:
        try:
            adapter = self._read_files(row)
            if adapter.digest != row.digest:
                raise CorruptBlob(f"it has the digest {adapter.digest}")
            return prepare_adapter(adapter)
        except (CorruptBlob, CdvftError) as error:
            log.error("adapter %s@%s (%s) cannot be read from the store: %s", row.name, row.version, row.digest, error)
            message = f"adapter {row.name}@{row.version} ({row.digest}) is damaged in the store; upload it again"
            raise unavailable("adapter_unavailable", message, retry_after=60) from None

    def _read_files(self, row: VersionRow) -> Adapter:
        """What was accepted once is not refused because a limit was lowered since."""
        files = self._store.files(row.id)
        most = len(files.weights)
        return read_adapter(files, self._base, row.form_labels, max_header_bytes=most, max_labels=most)

    async def _place(self, prepared: PreparedAdapter) -> Lease:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_seconds
        while True:
            try:
                return await self._workers.run(self._pool.place, prepared)
            except PoolFull:
                if loop.time() >= deadline:
                    raise
            await self._released.wait(min(RETRY_SECONDS, deadline - loop.time()))
