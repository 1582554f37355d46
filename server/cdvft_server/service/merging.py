"""Which requests run on merged weights, and the merging of what is hot: off the loop, one adapter at a time.

`merged` waits for the weights. `auto` uses them where they are there and pay; what would have paid is counted, and an
adapter that passes HOT_TOKENS is merged beside the traffic.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Literal

from cdvft.adapter import Adapter
from cdvft.site import Site

from cdvft_server.engine.merged import MergedLease, MergedPool, MergedUse, merge_adapter, merged_bytes
from cdvft_server.engine.pool import Lease, PoolFull
from cdvft_server.errors import ApiError
from cdvft_server.service.parts import Parts
from cdvft_server.store import VersionRow

__all__ = ["Merging", "Mode"]

log = logging.getLogger(__name__)

HOT_TOKENS = 4096
MAX_COUNTED = 4096  # adapters; then counting starts anew

Mode = Literal["fft", "merged", "auto"]


class Merging:
    """For the loop's thread only. `read` gives a stored adapter, in a worker thread."""

    def __init__(self, parts: Parts, pool: MergedPool, read: Callable[[VersionRow], Adapter]) -> None:
        self._backbone, self._engine, self._workers = parts.backbone, parts.engine, parts.workers
        self._pool, self._read = pool, read
        self._building: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(1)
        self._counted: Counter[str] = Counter()

    async def use(self, row: VersionRow, lease: Lease, mode: Mode, tokens: int) -> MergedUse | None:
        """How a request with this lease uses merged weights, None where it does not. `tokens`: what it and the other
        requests of its call put through the adapter at once, for the prompt.

        Raises ApiError unsupported_mode where `merged` asks for what can never be, PoolFull where not now.
        """
        if mode == "fft":
            return None
        if mode == "merged":
            self._check_fits(row, lease)
            return MergedUse(await self._merged(row), prompt=True, decode_from=1)
        least = self._engine.costs.least_tokens(lease.method, lease.flops, self._sites(lease))
        merged = self._pool.acquire(row.digest)
        if merged is not None:
            return MergedUse(merged, prompt=tokens >= least, decode_from=least)
        if tokens >= least and self._bytes(lease) <= self._pool.budget_bytes:
            self._count(row, tokens)
        return None

    def discard(self, digest: str) -> None:
        self._pool.discard(digest)
        self._counted.pop(digest, None)

    async def close(self) -> None:
        """No merging goes on after this."""
        tasks = list(self._building.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _sites(self, lease: Lease) -> list[Site]:
        return [self._backbone.info.sites[name] for name in lease.sites]

    def _bytes(self, lease: Lease) -> int:
        return merged_bytes(self._backbone.info.sites, lease.sites, self._backbone.dtype)

    def _check_fits(self, row: VersionRow, lease: Lease) -> None:
        needed = self._bytes(lease)
        if needed > self._pool.budget_bytes:
            raise ApiError(
                "unsupported_mode",
                f"adapter {row.name}@{row.version} takes {needed} bytes merged, this server has "
                f"{self._pool.budget_bytes} for merged weights (--merged-memory); use fft or auto",
                "x-adapter-mode",
            )

    def _count(self, row: VersionRow, tokens: int) -> None:
        if len(self._counted) > MAX_COUNTED:
            self._counted.clear()
        self._counted[row.digest] += tokens
        if self._counted[row.digest] >= HOT_TOKENS and row.digest not in self._building:
            del self._counted[row.digest]
            self._build(row).add_done_callback(_told)

    async def _merged(self, row: VersionRow) -> MergedLease:
        """A lease of the caller's own, after the merging that was needed."""
        while True:
            merged = self._pool.acquire(row.digest)
            if merged is not None:
                return merged
            await asyncio.shield(self._building.get(row.digest) or self._build(row))

    def _build(self, row: VersionRow) -> "asyncio.Task[None]":
        task = asyncio.create_task(self._merge(row), name=f"merge {row.digest}")
        self._building[row.digest] = task
        task.add_done_callback(lambda _: self._building.pop(row.digest, None))
        return task

    async def _merge(self, row: VersionRow) -> None:
        async with self._turn:
            weights = await self._workers.run_long(lambda: merge_adapter(self._backbone, self._read(row)))
            self._pool.place(weights).release()


def _told(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, PoolFull):
        log.error("an adapter could not be merged", exc_info=error)
