"""Which requests run on merged weights, and the merging of what is hot: off the loop, one adapter at a time.

`merged` waits for the weights. `auto` uses them where they are there and pay; what would have paid is counted, and an
adapter that passes HOT_TOKENS is merged beside the traffic.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Literal, get_args

from cdvft.adapter import Adapter

from cdvft_server.engine.batch import Request
from cdvft_server.engine.merged import MergedLease, MergedUse, merge_adapter, merged_bytes
from cdvft_server.engine.pool import Lease, PoolFull
from cdvft_server.errors import ApiError
from cdvft_server.service.parts import Parts
from cdvft_server.store import VersionRow

__all__ = ["MODES", "Merging", "Mode", "mode_of"]

log = logging.getLogger(__name__)

HOT_TOKENS = 4096
MAX_COUNTED = 4096  # adapters; then counting starts anew

Wish = Literal["fft", "merged", "auto"]  # what a request may say
Mode = Wish | Literal["merged where it fits"]  # what `--mode merged` means to a request that says nothing
MODES: tuple[str, ...] = get_args(Wish)


class Merging:
    """For the loop's thread only. `read` gives a stored adapter, in a worker thread."""

    def __init__(self, parts: Parts, read: Callable[[VersionRow], Adapter]) -> None:
        self._backbone, self._engine, self._workers = parts.backbone, parts.engine, parts.workers
        self._pool, self._read = parts.merged, read
        self._building: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(1)
        self._counted: Counter[str] = Counter()

    async def use_all(
        self,
        rows: Iterable[VersionRow],
        held: Mapping[str, Lease],
        mode: Mode,
        tokens: Mapping[str, int],
        leases: ExitStack,
    ) -> dict[str, MergedUse]:
        """`use` for each adapter of a call, by digest; `held` and `tokens` are by digest, too."""
        found = {}
        for row in {row.digest: row for row in rows}.values():
            use = await self.use(row, held[row.digest], mode, tokens[row.digest], leases)
            if use is not None:
                found[row.digest] = use
        return found

    async def use(self, row: VersionRow, lease: Lease, mode: Mode, tokens: int, leases: ExitStack) -> MergedUse | None:
        """How a call's requests on this lease use merged weights, None where they do not; its own lease is given back
        with `leases`. `tokens`: what the call puts through the adapter at once, all its prompts.

        Raises ApiError unsupported_mode where `merged` asks for what can never be, PoolFull where not now.
        """
        if mode == "merged":
            self._check_fits(row, lease)
            return self._held(MergedUse(await self._merged(row), prompt=True, decode_from=1), leases)
        if mode == "merged where it fits" and self._bytes(lease) <= self._pool.budget_bytes:
            with suppress(PoolFull):
                return self._held(MergedUse(await self._merged(row), prompt=True, decode_from=1), leases)
            return None
        if mode != "auto" or self._bytes(lease) > self._pool.budget_bytes:
            return None
        least = self._least_tokens(lease)
        merged = self._pool.acquire(row.digest)
        if merged is not None:
            return self._held(MergedUse(merged, prompt=tokens >= least, decode_from=least), leases)
        if tokens >= least:
            self._count(row, tokens)
        return None

    def share(self, use: MergedUse | None, shares: ExitStack) -> MergedUse | None:
        """One request's own share of `use`, given back with `shares`."""
        if use is None:
            return None
        return self._held(replace(use, lease=self._pool.again(use.lease)), shares)

    def _held(self, use: MergedUse, leases: ExitStack) -> MergedUse:
        leases.callback(use.lease.release)
        return use

    def _least_tokens(self, lease: Lease) -> float:
        sites = [self._backbone.info.sites[name] for name in lease.sites]
        return self._engine.costs.least_tokens(lease.method, lease.flops, sites)

    def discard(self, digest: str) -> None:
        self._pool.discard(digest)
        self._counted.pop(digest, None)

    async def close(self) -> None:
        """No merging goes on after this."""
        tasks = list(self._building.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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


def mode_of(request: Request) -> str:
    """base, fft or merged: how the request's prompt runs."""
    if request.lease is None:
        return "base"
    return "merged" if request.merged is not None and request.merged.prompt else "fft"
