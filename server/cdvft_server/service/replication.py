"""This server among the replicas on its database: it says that it lives, and does what the others' news ask for.

A delete of another replica's is cleared away here and acknowledged, so that the other knows when it is done; a pin that
was set, or moved, is followed.
"""

import asyncio
import logging

from cdvft_server.exceptions import StoreError
from cdvft_server.service.deletes import Deletes
from cdvft_server.service.parts import Parts
from cdvft_server.service.pins import Pins
from cdvft_server.store import News

__all__ = ["Replication"]

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
NEWS_SECONDS = 0.25


class Replication:
    """For the loop's thread only. Where the database is away it goes on once that is back."""

    def __init__(self, parts: Parts, deletes: Deletes, pins: Pins) -> None:
        self._lane, self._replica = parts.workers.beats, parts.store.as_replica(parts.base.digest)
        self._deletes, self._pins = deletes, pins
        self._beat_at = 0.0  # on the loop's clock
        self._joined = self._troubled = False
        self._done: list[int] = []  # news that are to be acknowledged
        self._work: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """From here on the others' deletes wait for this server."""
        await self._step()
        self._task = asyncio.create_task(self._run(), name="cdvft-replication")

    async def others_have_done(self, news_id: int, seconds: float) -> None:
        """Wait until every other replica that lives has done what these news ask for, not longer than this."""
        try:
            async with asyncio.timeout(seconds):
                while await self._others_wait(news_id):
                    await asyncio.sleep(NEWS_SECONDS)
        except TimeoutError:
            log.warning("a delete was answered before all replicas had done with what was deleted")

    async def close(self) -> None:
        tasks = [*self._work, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._joined:
            try:
                await self._lane.run(self._replica.leave)
            except StoreError as error:
                log.warning("the other replicas could not be told that this one stops: %s", error)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(NEWS_SECONDS)
            await self._step()

    async def _step(self) -> None:
        try:
            now = asyncio.get_running_loop().time()
            if not self._joined or now >= self._beat_at:
                await self._lane.run(self._replica.beat)
                self._joined, self._beat_at = True, now + BEAT_SECONDS
            for news in await self._lane.run(self._replica.news):
                self._begin(news)
            if self._done:
                done = self._done.copy()
                await self._lane.run(self._replica.acknowledge, done)
                self._done = [own for own in self._done if own not in done]
            self._troubled = False
        except Exception as error:  # the database may be back later
            if not self._troubled:
                log.warning("the other replicas cannot be heard: %s", error)
            self._troubled = True

    async def _others_wait(self, news_id: int) -> bool:
        try:
            return await self._lane.run(self._replica.waiting_for, news_id) > 0
        except StoreError:
            return True  # they cannot be heard now

    def _begin(self, news: News) -> None:
        """Beside what else there is to hear: a delete may wait long."""
        task = asyncio.create_task(self._follow(news), name=f"news {news.id}")
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _follow(self, news: News) -> None:
        try:
            if news.kind == "deleted":
                await self._deletes.clear(news.tenant, news.name, news.gone)
            await self._pins.follow(news.tenant, news.name)
        except Exception as error:
            log.warning("what another replica did to %s/%s is not followed: %s", news.tenant, news.name, error)
        self._done.append(news.id)
