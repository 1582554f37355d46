"""Which requests run on merged weights, and the merging of what is hot: off the loop, one adapter at a time.

`merged` waits for the weights. `auto` uses them where they are there and pay; what would have paid is counted, and an
adapter that passes HOT_TOKENS is merged beside the traffic.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Literal, get_args

from cdvft.adapter import Adapter

from cdvft_server.engine.admission import Draining
from cdvft_server.engine.batch import Request
from cdvft_server.engine.merged import MergedLease, MergedUse, MergedWeights, merge_adapter, merged_bytes
from cdvft_server.engine.pool import Lease, PoolFull
from cdvft_server.errors import ApiError
from cdvft_server.exceptions import NotFound, StoreError
from cdvft_server.service.parts import Parts
from cdvft_server.store import VersionRow

__all__ = ["MODES", "Merging", "Mode", "mode_of"]

log = logging.getLogger(__name__)

HOT_TOKENS = 4096
UNUSED_SECONDS = 60.0  # after which merged weights may go for others that are only hot
MAX_COUNTED = 4096  # adapters; then counting starts anew

Wish = Literal["fft", "merged", "auto"]  # what a request may say
Mode = Wish | Literal["merged where it fits"]  # what `--mode merged` means to a request that says nothing
MODES: tuple[str, ...] = get_args(Wish)


class Merging:
    """For the loop's thread only. `read` gives a stored adapter, in a worker thread."""

    def __init__(self, parts: Parts, read: Callable[[VersionRow], Adapter]) -> None:
        self._backbone, self._engine, self._workers = parts.backbone, parts.engine, parts.workers
        self._pool, self._read, self._wait_seconds = parts.merged, read, parts.config.pool_wait_seconds
        self._building: dict[str, _Build] = {}
        self._turn, self._max_queue = asyncio.Semaphore(1), parts.config.max_queue
        self._counted: Counter[str] = Counter()

    async def use_all(
        self,
        rows: Iterable[VersionRow],
        held: Mapping[str, Lease],
        mode: Mode,
        tokens: Mapping[str, int],
        leases: ExitStack,
    ) -> dict[str, MergedUse]:
        """`use` for each adapter of a classify call, by `VersionRow.key`; so are `held` and `tokens`."""
        wanted = {row.key: row for row in rows}
        if mode == "merged":
            self._check_fit([(row, held[key]) for key, row in wanted.items()])
        found = {}
        for key, row in wanted.items():
            use = await self.use(row, held[key], mode, tokens[key], leases, generates=False)
            if use is not None:
                found[key] = use
        return found

    async def use(
        self, row: VersionRow, lease: Lease, mode: Mode, tokens: int, leases: ExitStack, *, generates: bool = True
    ) -> MergedUse | None:
        """How a call's requests on this lease use merged weights, None where they do not; its own lease is given back
        with `leases`. `tokens`: what the call puts through the adapter at once, all its prompts.

        Raises ApiError unsupported_mode where `merged` asks for what can never be, PoolFull where not now.
        """
        if mode == "merged":
            self._check_fit([(row, lease)])
        elif mode == "fft" or self._bytes(lease) > self._pool.budget_bytes:
            return None
        elif mode == "auto":
            return self._if_it_pays(row, lease, tokens, leases, generates)
        try:
            return self._held(MergedUse(await self._merged(row, lease), prompt=True, decode_from=1), leases)
        except (PoolFull, ApiError, StoreError) as error:
            if mode == "merged":
                raise
            log.warning("adapter %s@%s runs unmerged: %s", row.name, row.version, error)
            return None

    def _if_it_pays(
        self, row: VersionRow, lease: Lease, tokens: int, leases: ExitStack, generates: bool
    ) -> MergedUse | None:
        """A prompt of many tokens, or decode steps of many requests; what is hot and not merged is counted."""
        sites = [self._backbone.info.sites[name] for name in lease.sites]
        least = self._engine.costs.least_tokens(lease.method, lease.flops, sites)
        if tokens < least and (math.isinf(least) or not generates):
            return None
        merged = self._pool.acquire(row.key)
        if merged is not None:
            return self._held(MergedUse(merged, prompt=tokens >= least, decode_from=least), leases)
        if tokens >= least:
            self._count(row, lease, tokens)
        return None

    def share(self, use: MergedUse | None, shares: ExitStack) -> MergedUse | None:
        """One request's own share of `use`, given back with `shares`."""
        if use is None:
            return None
        return self._held(replace(use, lease=self._pool.again(use.lease)), shares)

    def _held(self, use: MergedUse, leases: ExitStack) -> MergedUse:
        leases.callback(use.lease.release)
        return use

    def discard(self, key: str) -> None:
        self._pool.discard(key)
        self._counted.pop(key, None)
        if key in self._building:
            self._building[key].discarded = True

    async def close(self) -> None:
        """No merging goes on after this; who waits for one hears that the server is stopping."""
        tasks = [build.task for build in self._building.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _bytes(self, lease: Lease) -> int:
        return merged_bytes(self._backbone.info.sites, lease.sites, self._backbone.dtype)

    def _check_fit(self, wanted: Sequence[tuple[VersionRow, Lease]]) -> None:
        """Raises ApiError where memory without anything else in it would hold fewer."""
        needed = sum(self._bytes(lease) for _, lease in wanted)
        if needed > self._pool.budget_bytes:
            names = ", ".join(f"{row.name}@{row.version}" for row, _ in wanted[:3]) + (", ..." if wanted[3:] else "")
            raise ApiError(
                "unsupported_mode",
                f"{names}: {needed} bytes merged, this server has {self._pool.budget_bytes} for merged weights "
                "(--merged-memory); use fft or auto",
                "x-adapter-mode",
            )

    def _count(self, row: VersionRow, lease: Lease, tokens: int) -> None:
        """Merge what is hot, where there is room that nobody used for a while. What failed must be ten times as hot."""
        if len(self._counted) > MAX_COUNTED:
            self._counted.clear()
        self._counted[row.key] += tokens
        if self._counted[row.key] < HOT_TOKENS or row.key in self._building:
            return
        self._counted[row.key] = -9 * HOT_TOKENS
        with suppress(PoolFull):
            self._pool.check_room(self._bytes(lease), UNUSED_SECONDS)
            self._build(row, lease, asked=False)

    async def _merged(self, row: VersionRow, lease: Lease) -> MergedLease:
        """A lease of the caller's own, after the merging that was needed. Raises PoolFull, also after a long wait, or
        where too many wait already."""
        if (waiting := sum(build.waiting for build in self._building.values())) >= self._max_queue:
            raise PoolFull(f"{waiting} calls wait for weights to be merged already; ask again")
        try:
            async with asyncio.timeout(self._wait_seconds):
                while True:
                    merged = self._pool.acquire(row.key)
                    if merged is not None:
                        return merged
                    build = self._building.get(row.key)
                    if build is None or build.task.done():
                        self._pool.check_room(self._bytes(lease))
                        build = self._build(row, lease, asked=True)
                    try:
                        await build.wait()
                    except (ApiError, NotFound):
                        if build.version_id == row.id:
                            raise  # else another name's with the same content: that one was deleted, or is damaged
        except TimeoutError:
            raise PoolFull(f"adapter {row.name}@{row.version} is still to be merged; ask again") from None

    def _build(self, row: VersionRow, lease: Lease, *, asked: bool) -> "_Build":
        build = _Build(row.id, asked)
        build.task = asyncio.create_task(self._merge(row, self._bytes(lease), build), name=f"merge {row.key}")
        self._building[row.key] = build

        def ended(task: "asyncio.Task[None]") -> None:
            if self._building.get(row.key) is build:
                del self._building[row.key]
            _tell(task, build)

        build.task.add_done_callback(ended)
        return build

    async def _merge(self, row: VersionRow, nbytes: int, build: "_Build") -> None:
        async with self._turn:
            if build.asked and not build.waiting:
                return  # everybody who asked has left
            unused_for = 0.0 if build.waiting else UNUSED_SECONDS
            self._pool.check_room(nbytes, unused_for)
            weights = await self._workers.run_long(self._merge_now, row)
            self._pool.place(weights, unused_for).release()
            if build.discarded:
                self._pool.discard(row.key)

    def _merge_now(self, row: VersionRow) -> MergedWeights:
        return replace(merge_adapter(self._backbone, self._read(row)), digest=row.key)


class _Build:
    """One merging. `version_id`: whose files it reads; `asked`: for a request, not for traffic; `discarded`: the
    adapter was deleted meanwhile."""

    task: "asyncio.Task[None]"

    def __init__(self, version_id: int, asked: bool) -> None:
        self.version_id, self.asked = version_id, asked
        self.waiting = 0
        self.discarded = False

    async def wait(self) -> None:
        """Until it has ended; raises what it ended with."""
        self.waiting += 1
        try:
            await asyncio.shield(self.task)
        except asyncio.CancelledError:
            if self.task.cancelled():
                raise Draining("the server is shutting down") from None
            raise
        finally:
            self.waiting -= 1


def _tell(task: "asyncio.Task[None]", build: _Build) -> None:
    """Log what no request hears of."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not build.waiting and not build.discarded and not isinstance(error, PoolFull):
        log.error("an adapter could not be merged: %s", error)


def mode_of(request: Request) -> str:
    """base, fft or merged: how the request's prompt runs."""
    if request.lease is None:
        return "base"
    return "merged" if request.merged is not None and request.merged.prompt else "fft"
