"""The usage ledger's near side: what calls use, gathered every half second and written to the store."""

import asyncio
import logging
import secrets
import time

from cdvft_server.service.flushing import Flushing
from cdvft_server.service.metering import Use
from cdvft_server.service.workers import Workers
from cdvft_server.store import Account, Amounts, UsageStore
from cdvft_server.store.usage import HOUR

__all__ = ["Ledger"]

log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.5  # and the write after it: a kill loses no more than a second
MOST_PENDING = 100_000  # (hour, account) that wait for a store that is away

Pending = dict[tuple[int, Account], Amounts]


class Ledger:
    """For the loop's thread only. Calls that go on are counted as they go, not at their end."""

    def __init__(self, store: UsageStore, workers: Workers) -> None:
        self._store, self._workers = store, workers
        self._open: set[Use] = set()
        self._pending: Pending = {}
        self._writer, self._number = secrets.token_hex(16), 1
        self._batch: Pending = {}  # with that number: unchanged until it is known to be written
        self._turn = asyncio.Lock()
        self._flushing = Flushing("usage", FLUSH_SECONDS, self.flush)
        self.total = Amounts()
        self.lost = 0  # requests that could not be kept, at least
        self.start, self.close = self._flushing.start, self._flushing.close

    def open(self, use: Use) -> None:
        """Count it, from now until it is settled."""
        self._open.add(use)

    def names(self, most: int) -> tuple[list[str], list[str]]:
        """Public adapters that calls run on, and those that they wait for: at most so many of each."""
        parts = [part for use in self._open for part in use.parts.values() if part.public and part.outcome == "open"]
        running = {part.account.adapter for part in parts if part.request.times.running}
        waiting = {part.account.adapter for part in parts if part.request.times.started is None}
        return sorted(running)[:most], sorted(waiting)[:most]

    def waiting(self, tenant: str) -> int:
        """Its engine requests that have not begun."""
        parts = (part for use in self._open for part in use.parts.values() if part.account.tenant == tenant)
        return sum(part.outcome == "open" and part.request.times.started is None for part in parts)

    def totals(self) -> Amounts:
        """Everything that was counted since the start, up to now."""
        self._gather()
        return self.total

    async def flush(self) -> None:
        """Write what was used until now. Raises StoreUnavailable; nothing is lost then."""
        async with self._turn:
            self._gather()
            while self._batch or self._pending:
                if not self._batch:
                    self._batch, self._pending = self._pending, {}
                await self._workers.run(self._store.add, self._writer, self._number, self._batch)
                self._batch = {}
                self._number += 1

    def _gather(self) -> None:
        hour = int(time.time()) // HOUR * HOUR
        for use in list(self._open):
            settled = use.settled  # before it is drawn: what comes in between is drawn the next time
            for account, amounts in use.draw().items():
                self._add(hour, account, amounts)
            if settled:
                self._open.discard(use)

    def _add(self, hour: int, account: Account, amounts: Amounts) -> None:
        self.total += amounts
        own = self._pending.get((hour, account))
        if own is not None:
            own += amounts
        elif len(self._pending) < MOST_PENDING:
            self._pending[hour, account] = amounts
        else:
            if not self.lost:
                log.error("the store is away and %d accounts wait for it: from now on some usage is lost", MOST_PENDING)
            self.lost += max(amounts.requests, 1)
