"""Leases on adapters: from the pool where they are resident, else loaded once for all who wait for them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

from cdvft.adapter import Adapter
from cdvft.checkpoint import read_adapter
from cdvft.errors import CdvftError
from cdvft.prepared import PreparedAdapter, prepare_adapter

from cdvft_server.engine.pool import Lease, PoolFull
from cdvft_server.errors import ApiError, invalid, unavailable
from cdvft_server.exceptions import CorruptBlob, NotFound
from cdvft_server.service.loads import LoadTimes, Source
from cdvft_server.service.parts import Parts
from cdvft_server.store import VersionRow

__all__ = ["Residency"]

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.1  # a lease that is given back while we look for room notifies nobody


class _Load:
    """One adapter on its way into the pool. It holds a lease until everybody who waits has their own.

    `full` is done once the pool had no room for it. `version_id`: whose files it reads; other names may have the same
    content.
    """

    def __init__(self, task: "asyncio.Task[Lease]", version_id: int) -> None:
        self.task, self.version_id = task, version_id
        self.waiting = 0
        self.full = asyncio.get_running_loop().create_future()
        task.add_done_callback(lambda _: self.release_if_unused())

    def release_if_unused(self) -> None:
        if not self.waiting and self.task.done() and not self.task.cancelled() and self.task.exception() is None:
            self.task.result().release()


@dataclass(frozen=True)
class _Size:
    """In bytes. `bank` numbers the tables that adapters of one form share: `opening` for the first of them (a row of
    zeros, what all have in common), and a row for each."""

    bank: int
    opening: int
    row: int
    head: int

    @property
    def alone(self) -> int:
        """With nothing else in memory."""
        return self.opening + self.row + self.head


class Residency:
    """For the loop's thread only."""

    def __init__(self, parts: Parts) -> None:
        self._base, self._pool, self._store, self._workers = parts.base, parts.pool, parts.store, parts.workers
        self._released, self._wait_seconds = parts.bridge.ended, parts.config.pool_wait_seconds
        self._loads: dict[str, _Load] = {}
        self._sizes: dict[str, _Size] = {}
        self._banks: dict[Hashable, int] = {}
        self._turn = asyncio.Lock()
        self._max_queue, self._waiting = parts.config.max_queue, 0
        self.times = LoadTimes()

    async def lease(self, row: VersionRow, *, wait: bool = True) -> Lease:
        """Raises ApiError adapter_unavailable where the stored adapter cannot be read, PoolFull after the wait for
        room, or at once without `wait`."""
        while True:
            lease = self._pool.acquire(row.key)
            if lease is not None:
                return lease
            lease = await self._join_load(row, wait)
            if lease is not None:
                return lease

    async def lease_all(self, rows: Iterable[VersionRow], leases: ExitStack) -> dict[str, Lease]:
        """A lease for each `VersionRow.key`, given back with `leases`: all or none. Raises as `lease`, and ApiError
        where they cannot be in memory together.

        Who finds no room for the next one gives back what it has. Only one call at a time waits for room with leases
        in hand: no two wait for each other.
        """
        wanted = {row.key: row for row in rows}
        try:
            return await self._lease_each(wanted, leases, wait=len(wanted) == 1)
        except PoolFull:
            if len(wanted) == 1:
                raise
        await self._check_fits(wanted)
        async with self._my_turn():
            return await self._lease_each(wanted, leases, wait=True)

    def shares(self, lease: Lease | None, count: int, leases: ExitStack) -> list[Lease | None]:
        """`count` more leases on an adapter that is leased (None is the base), given back with `leases`."""
        shares = [lease and self._pool.again(lease) for _ in range(count)]
        for share in shares:
            if share is not None:
                leases.callback(share.release)
        return shares

    def of(self, key: str) -> Literal["device", "host", "store"]:
        """Where it is now."""
        if self._pool.is_resident(key):
            return "device"
        return "host" if key in self._pool.host else "store"

    async def warm(self, row: VersionRow) -> None:
        """Onto the device if there is room without evicting another; raises PoolFull otherwise, ApiError as `lease`."""
        if not self._pool.is_resident(row.key):
            _, prepared = await self._workers.run(self._find, row)
            (await self._workers.run(self._pool.place, prepared, evict=False)).release()

    async def bytes_of(self, rows: Iterable[VersionRow]) -> tuple[int, int]:
        """What these take together with nothing else in memory, and the largest of them alone. Raises ApiError."""
        sizes = {row.key: await self._size(row) for row in rows}
        banks = {size.bank: size.opening for size in sizes.values()}
        together = sum(banks.values()) + sum(size.row + size.head for size in sizes.values())
        return together, max((size.alone for size in sizes.values()), default=0)

    def discard(self, key: str) -> None:
        self._pool.discard(key)
        self._sizes.pop(key, None)

    async def close(self) -> None:
        """No load goes on after this."""
        tasks = [load.task for load in self._loads.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _lease_each(self, rows: Mapping[str, VersionRow], leases: ExitStack, *, wait: bool) -> dict[str, Lease]:
        held: dict[str, Lease] = {}
        with ExitStack() as own:
            for key, row in rows.items():
                held[key] = lease = await self.lease(row, wait=wait)
                own.callback(lease.release)
            leases.enter_context(own.pop_all())
        return held

    @asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        try:
            with self._in_line():
                async with asyncio.timeout(self._wait_seconds):
                    await self._turn.acquire()
        except TimeoutError:
            raise PoolFull("no room for the adapters of this call: others wait for room before it") from None
        try:
            yield
        finally:
            self._turn.release()

    async def _check_fits(self, rows: Mapping[str, VersionRow]) -> None:
        """Raises ApiError where memory without anything else in it would hold fewer."""
        budget, total = self._pool.stats().budget_bytes, 0
        banks: set[int] = set()
        for row in rows.values():  # it may be over before all have been read
            size = await self._size(row)
            total += size.row + size.head + (0 if size.bank in banks else size.opening)
            banks.add(size.bank)
            if total > budget:
                raise invalid(
                    f"the {len(rows)} adapters of this call take {total} bytes or more together, the adapter memory "
                    f"has {budget}; name fewer in one call",
                    "model",
                )

    def _check_size(self, row: VersionRow, prepared: PreparedAdapter) -> None:
        """Uploaded when there was more memory, it may be too large for what there is now."""
        budget = self._pool.stats().budget_bytes
        if prepared.least_memory > budget:
            message = (
                f"adapter {row.name}@{row.version} takes {prepared.least_memory} bytes of adapter memory, this server "
                f"has {budget} (--adapter-memory)"
            )
            raise unavailable("adapter_unavailable", message, retry_after=60)

    async def _size(self, row: VersionRow) -> _Size:
        if row.key not in self._sizes:
            self._measure((await self._workers.run(self._find, row))[1])
        return self._sizes[row.key]

    def _measure(self, prepared: PreparedAdapter) -> None:
        bank = self._banks.setdefault(prepared.signature, len(self._banks))
        opening = prepared.nbytes + prepared.shared_nbytes
        self._sizes[prepared.digest] = _Size(bank, opening, prepared.nbytes, prepared.head_nbytes)

    async def _join_load(self, row: VersionRow, wait: bool) -> Lease | None:
        with self._in_line():
            load = self._loads.get(row.key)
            if load is None:
                task = asyncio.create_task(self._load(row), name=f"load {row.key}")
                load = self._loads[row.key] = _Load(task, row.id)
            load.waiting += 1
            try:
                if not wait:
                    await asyncio.wait({load.task, load.full}, return_when=asyncio.FIRST_COMPLETED)
                    if not load.task.done():
                        raise PoolFull(f"no room for adapter {row.name}@{row.version} now")
                await asyncio.shield(load.task)
                return self._pool.acquire(row.key)
            except (ApiError, NotFound):
                if load.version_id == row.id:
                    raise
                return None  # that version was deleted, or is damaged: this one has files of its own
            finally:
                load.waiting -= 1
                load.release_if_unused()

    @contextmanager
    def _in_line(self) -> Iterator[None]:
        """While a call waits for adapters. Raises ApiError where as many do as may."""
        if self._waiting >= self._max_queue:
            raise unavailable("overloaded", f"{self._waiting} calls wait for adapters already; try again in a second")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def _load(self, row: VersionRow) -> Lease:
        started = perf_counter()
        try:
            source, prepared = await self._workers.run(self._find, row)
            self._measure(prepared)
            self._check_size(row, prepared)
            lease = await self._place(prepared, self._loads[row.key])
        finally:
            del self._loads[row.key]
        self.times.observe(source, perf_counter() - started)
        return lease

    def _find(self, row: VersionRow) -> tuple[Source, PreparedAdapter]:
        """On the host, else in the store; known by the row's key from here on. Raises ApiError."""
        prepared = self._pool.host.get(row.key)
        if prepared is not None:
            return "host", prepared
        return "store", replace(prepare_adapter(self.read(row)), digest=row.key)

    def read(self, row: VersionRow) -> Adapter:
        """From the store, in a worker thread. Raises ApiError adapter_unavailable where it is damaged."""
        try:
            adapter = self._read_files(row)
            if adapter.digest != row.digest:
                raise CorruptBlob(f"it has the digest {adapter.digest}")
            return adapter
        except (CorruptBlob, CdvftError) as error:
            log.error("adapter %s@%s (%s) cannot be read from the store: %s", row.name, row.version, row.digest, error)
            message = f"adapter {row.name}@{row.version} ({row.digest}) is damaged in the store; upload it again"
            raise unavailable("adapter_unavailable", message, retry_after=60) from None

    def _read_files(self, row: VersionRow) -> Adapter:
        """What was accepted once is not refused because a limit was lowered since."""
        files = self._store.files(row.id)
        most = len(files.weights)
        return read_adapter(files, self._base, row.form_labels, max_header_bytes=most, max_labels=most)

    async def _place(self, prepared: PreparedAdapter, load: _Load) -> Lease:
        """Try until there is room, the time is over, or nobody waits any more."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_seconds
        while True:
            try:
                return await self._workers.run(self._pool.place, prepared)
            except PoolFull:
                if not load.full.done():
                    load.full.set_result(None)
                if loop.time() >= deadline or not load.waiting:
                    self._pool.host.put(prepared)  # for who asks again
                    raise
            await self._released.wait(min(RETRY_SECONDS, deadline - loop.time()))
