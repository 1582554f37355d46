"""Writing what was counted in memory, again and again, until the end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

__all__ = ["Flushing"]

log = logging.getLogger(__name__)


class Flushing:
    """Calls `flush` every `seconds` from `start` on, and once more at `close`. Where it raises, it has kept what it
    could not write: that is logged once, and its end."""

    def __init__(self, name: str, seconds: float, flush: Callable[[], Awaitable[None]]) -> None:
        self._name, self._seconds, self._flush = name, seconds, flush
        self._task: asyncio.Task[None] | None = None
        self._troubled = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._forever(), name=f"cdvft-{self._name}")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._once()

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            await self._once()

    async def _once(self) -> None:
        try:
            await self._flush()
        except Exception as error:  # a store that is away now may be back later
            if not self._troubled:
                log.warning("%s cannot be written, kept in memory: %s", self._name, error)
            self._troubled = True
        else:
            if self._troubled:
                log.warning("%s can be written again", self._name)
            self._troubled = False
