"""How often and when each version was last used: counted in memory, written in batches."""

from collections import Counter

from cdvft_server.service.flushing import Flushing
from cdvft_server.service.workers import Workers
from cdvft_server.store import Store

__all__ = ["Hits"]

FLUSH_SECONDS = 2.0


class Hits:
    """`flush` is called every two seconds by a task, and once at the end. For the loop's thread only."""

    def __init__(self, store: Store, workers: Workers) -> None:
        self._store, self._workers = store, workers
        self._counts: Counter[int] = Counter()
        self._last: dict[int, float] = {}
        self._flushing = Flushing("hits", FLUSH_SECONDS, self.flush)
        self.start, self.close = self._flushing.start, self._flushing.close

    def count(self, version_id: int, now: float) -> None:
        self._counts[version_id] += 1
        self._last[version_id] = now

    def pending(self, version_id: int) -> tuple[int, float | None]:
        """Hits not yet in the store, and the time of the last."""
        return self._counts[version_id], self._last.get(version_id)

    async def flush(self) -> None:
        """What the store does not take is kept for the next time. Raises what it does."""
        counts, last = self._counts, self._last
        if not counts:
            return
        self._counts, self._last = Counter(), {}
        try:
            await self._workers.run(self._store.count_hits, dict(counts), int(max(last.values())))
        except Exception:
            self._counts.update(counts)
            self._last = last | self._last
            raise
